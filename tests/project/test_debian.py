# SPDX-License-Identifier: GPL-2.0
"""What is fetched of Debian while its archive changes: real apt, on archives made here from recorded package lists."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import bochs
import debian
import emulator
import kernels
import patched_qemu
import pytest
import roots
from debian import Apt, DebianError, Index, Offer

RECORDED = Path(__file__).resolve().parent / "packages"

# One package, as package lists have it.
Package = dict[str, str]


def recorded(name: str) -> list[Package]:
    text = re.sub(r"^#.*\n", "", (RECORDED / name).read_text(), flags=re.M)
    return [dict(line.split(": ", 1) for line in record.splitlines()) for record in text.strip().split("\n\n")]


def package(name: str, version: str, depends: str = "", **fields: str) -> Package:
    return {"Package": name, "Version": version, "Architecture": "amd64", "Depends": depends, **fields}


def without(packages: Iterable[Package], name: str, version: str = "") -> list[Package]:
    """All but those of a name (a pattern), and of a version."""
    return [one for one in packages if not (re.fullmatch(name, one["Package"]) and version in ("", one["Version"]))]


def kernel_image(release: str, version: str) -> list[Package]:
    """An image, with headers that need nothing else."""
    return [package(f"linux-{part}-{release}", version) for part in ("image", "headers")]


class Archive:
    """Debian's archive, as a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()

    def file(self, one: Package) -> Path:
        return self.directory / f"{one['Package']}_{one['Version'].replace(':', '%3a')}.deb"

    def publish(self, packages: Iterable[Package], contents: Callable[[Package, Path], None] | None = None) -> None:
        """The package lists, and the packages if there is something to put into them; what was there before goes."""
        for old in self.directory.glob("*.deb"):
            old.unlink()
        records = []
        for one in packages:
            fields = {"Maintainer": "nobody", "Description": "made for a test", **{k: v for k, v in one.items() if v}}
            if contents:
                root = self.directory / "root"
                contents(one, root)
                (root / "DEBIAN").mkdir(parents=True)
                (root / "DEBIAN" / "control").write_text("".join(f"{k}: {v}\n" for k, v in fields.items()))
                deb = str(self.file(one))
                subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "--build", str(root), deb], check=True, stdout=subprocess.DEVNULL)
                shutil.rmtree(root)
            data = self.file(one).read_bytes() if contents else b"\0"
            fields |= {"Filename": f"./{self.file(one).name}", "Size": str(len(data))}
            fields["SHA256"] = hashlib.sha256(data).hexdigest()
            records.append("".join(f"{k}: {v}\n" for k, v in fields.items()))
        lists = "\n".join(records).encode()
        (self.directory / "Packages").write_bytes(lists)
        digest = hashlib.sha256(lists).hexdigest()
        (self.directory / "Release").write_text(f"Date: Sat, 28 Nov 2026 22:00:00 UTC\nSHA256:\n {digest} {len(lists)} Packages\n")


def a_file(one: Package, root: Path) -> None:
    """A package's content: that it was unpacked, and its version."""
    (root / "unpacked").mkdir(parents=True)
    (root / "unpacked" / one["Package"]).write_text(one["Version"])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "cache"
    directory.mkdir()
    for module in (bochs, debian, kernels, emulator, roots):
        monkeypatch.setattr(module, "CACHE", directory)
    monkeypatch.setattr(debian, "PAUSE", 0)
    return directory


@pytest.fixture
def archive(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """The only one that apt knows."""
    made = Archive(tmp_path / "archive")
    monkeypatch.setattr(debian, "sources", lambda *_: f"deb [trusted=yes arch=amd64] copy:{made.directory} ./\n")
    return made


class SourceArchive(Archive):
    """The same for source packages, of which some are listed only."""

    def publish_sources(self, listed: Iterable[str], there: Iterable[str]) -> None:
        """Versions of qemu's; the archive has the files of some."""
        records = []
        for version in listed:
            stem = f"qemu_{version.partition(':')[2]}"
            files = {}
            if version in there:
                tree = self.directory / "qemu"
                (tree / "debian" / "source").mkdir(parents=True)
                (tree / "debian" / "source" / "format").write_text("3.0 (native)\n")
                (tree / "debian" / "control").write_text(
                    "Source: qemu\nMaintainer: nobody\n\nPackage: qemu\nArchitecture: all\nDescription: made for a test\n"
                )
                (tree / "debian" / "changelog").write_text(
                    f"qemu ({version}) test; urgency=low\n\n  * A test.\n\n -- nobody <a@b>  Sat, 28 Nov 2026 22:00:00 +0000\n"
                )
                (tree / "VERSION").write_text(version)
                subprocess.run(["dpkg-source", "-b", "qemu"], cwd=self.directory, check=True, capture_output=True)
                shutil.rmtree(tree)
                files = {name: (self.directory / name).read_bytes() for name in (f"{stem}.dsc", f"{stem}.tar.xz")}
            else:
                files = {f"{stem}.dsc": b"not there", f"{stem}.tar.xz": b"not there"}
            sums = "".join(f"\n {hashlib.sha256(data).hexdigest()} {len(data)} {name}" for name, data in files.items())
            records.append(f"Package: qemu\nBinary: qemu\nVersion: {version}\nDirectory: .\nFormat: 3.0 (native)\nChecksums-Sha256:{sums}\n")
        lists = "\n".join(records).encode()
        (self.directory / "Sources").write_bytes(lists)
        digest = hashlib.sha256(lists).hexdigest()
        (self.directory / "Release").write_text(f"Date: Sat, 28 Nov 2026 22:00:00 UTC\nSHA256:\n {digest} {len(lists)} Sources\n")


@pytest.fixture
def source_archive(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> SourceArchive:
    made = SourceArchive(tmp_path / "sources")
    monkeypatch.setattr(debian, "sources", lambda *_: f"deb-src [trusted=yes] copy:{made.directory} ./\n")
    monkeypatch.setattr(patched_qemu, "HOME", cache / "patched-qemu")
    patched_qemu.HOME.mkdir()
    return made


def test_qemu_of_the_series(source_archive: SourceArchive) -> None:
    """The newest of the version that the patches are for, whatever else there is."""
    versions = ["1:10.0.9+ds", "1:10.0.13+ds", "1:10.2.2+ds"]
    source_archive.publish_sources(versions, versions)
    unpacked, version = patched_qemu._archive()
    assert version == "qemu 1:10.0.13+ds"
    assert (unpacked / "VERSION").read_text() == "1:10.0.13+ds"


def test_no_qemu_of_the_series(source_archive: SourceArchive) -> None:
    source_archive.publish_sources(["1:10.2.2+ds"], ["1:10.2.2+ds"])
    with pytest.raises(DebianError, match="QEMU's source cannot be had"):
        patched_qemu._archive()
    assert not (patched_qemu.HOME / "unpatched").exists()


def test_newest_qemu_is_listed_only(source_archive: SourceArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on 29 November 2026: the lists name two sources of 11.1, and the archive has neither."""
    monkeypatch.setattr(patched_qemu, "files", lambda _: ["VERSION"])
    source_archive.publish_sources(["1:10.2.2+ds", "1:11.1.2+ds", "1:11.1.3+ds"], ["1:10.2.2+ds"])
    newest, version = patched_qemu.newest()
    assert version == "qemu 1:10.2.2+ds"
    assert (newest / "VERSION").read_text() == "1:10.2.2+ds"


def test_no_qemu_is_there(source_archive: SourceArchive) -> None:
    source_archive.publish_sources(["1:11.1.2+ds", "1:11.1.3+ds"], [])
    with pytest.raises(DebianError, match="the source of no QEMU; its lists name qemu 1:11.1.3.*, qemu 1:11.1.2"):
        patched_qemu.newest()


def index_of(archive: Archive, packages: Iterable[Package]) -> Index:
    archive.publish(packages)
    apt = Apt("test")
    apt._configure()
    apt._run("update")
    return apt.index()


def fetch(what: str, choose: Callable[[Index], list[Offer]]) -> tuple[Offer, dict[str, str]]:
    """What was fetched, and the versions that were unpacked."""
    into = debian.CACHE / "into"
    offer = Apt("test").fetch(what, choose, into)
    return offer, {file.name: file.read_text() for file in (into / "unpacked").iterdir()}


def six_one(index: Index) -> list[Offer]:
    return kernels.kernel_offers(index, "6.1")


def test_half_published_kernel(archive: Archive, capfd: pytest.CaptureFixture[str]) -> None:
    """As on 28 November 2026: kbuild is newer than the image, and of the newest kernel there is no image."""
    archive.publish(recorded("linux-6.1"), a_file)
    _, unpacked = fetch("kernel 6.1", six_one)
    assert unpacked == {
        "linux-image-6.1.0-56-amd64": "6.1.192-2",
        "linux-headers-6.1.0-56-amd64": "6.1.192-2",
        "linux-headers-6.1.0-56-common": "6.1.192-2",
        "linux-kbuild-6.1": "6.1.192-3",
        "linux-compiler-gcc-12-x86": "6.1.192-3",
    }
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if "6.1.192-3" in line] == [
        "memslot: kernel 6.1 is 6.1.0-56-amd64 (6.1.192-2), because 6.1.0-57-amd64 (6.1.192-3) cannot be had: "
        "there is no linux-image-6.1.0-57-amd64 6.1.192-3"
    ]


def best(offers: list[Offer]) -> Offer:
    return next(offer for offer in offers if offer.packages)


@pytest.mark.parametrize(
    ("missing", "release", "lacks"),
    [
        # an older ABI is still there
        (("linux-image-6.1.0-56-amd64", ""), "6.1.0-55", "there is no linux-image-6.1.0-56-amd64 6.1.192-2"),
        (("linux-headers-6.1.0-56-amd64", ""), "6.1.0-55", "there is no linux-headers-6.1.0-56-amd64 6.1.192-2"),
        (
            ("linux-headers-6.1.0-56-common", ""),
            "6.1.0-55",
            "linux-headers-6.1.0-56-amd64 needs linux-headers-6.1.0-56-common = 6.1.192-2",
        ),
        # the release's kernel, after an update of security that has no kbuild yet
        (
            ("linux-kbuild-6.1", "6.1.192-3"),
            "6.1.0-50",
            "linux-headers-6.1.0-56-amd64 needs linux-kbuild-6.1 >= 6.1.192-2",
        ),
        # two older ABIs have images only
        ((r"linux-headers-6.1.0-5[3-7]-amd64", ""), "6.1.0-50", "there is no linux-headers-6.1.0-56-amd64 6.1.192-2"),
    ],
)
def test_newest_complete_kernel(archive: Archive, missing: tuple[str, str], release: str, lacks: str) -> None:
    offers = six_one(index_of(archive, without(recorded("linux-6.1"), *missing)))
    assert best(offers).what.startswith(f"{release}-amd64 ")
    assert lacks in [offer.lacks for offer in offers]


def test_other_flavours_are_no_choice(archive: Archive) -> None:
    offers = six_one(index_of(archive, recorded("linux-6.1")))
    assert offers and not [offer for offer in offers if re.search("cloud|rt-|unsigned", offer.what)]
    # what other series have is not 6.1's, and an older one's name may sort behind
    packages = [*kernel_image("6.1.9-amd64", "6.1.9-1"), *kernel_image("6.1.10-amd64", "6.1.10-1"), *kernel_image("6.12.1-amd64", "6.12.1-1")]
    assert [offer.what for offer in six_one(index_of(archive, packages))] == ["6.1.10-amd64 (6.1.10-1)", "6.1.9-amd64 (6.1.9-1)"]


def test_image_and_headers_are_of_one_version(archive: Archive) -> None:
    image, _ = kernel_image("6.1.0-56-amd64", "6.1.192-2")
    _, headers = kernel_image("6.1.0-56-amd64", "6.1.192-3")
    assert [offer.packages for offer in six_one(index_of(archive, [image, headers]))] == [(), ()]


def test_kernel_of_many_packages(archive: Archive) -> None:
    def seven_three(packages: list[Package]) -> list[Offer]:
        return kernels.kernel_offers(index_of(archive, packages), "7.3")

    packages = recorded("linux-7.3")
    (offer,) = seven_three(packages)
    parts = ("base-{}-amd64", "binary-{}-amd64", "headers-{}-amd64", "headers-{}-common", "image-{}-amd64", "kbuild-{}", "modules-{}-amd64")
    assert sorted(offer.packages) == [f"linux-{part.format('7.3.4+deb13')}=7.3.4-1~bpo13+1" for part in parts]
    (offer,) = seven_three(without(packages, r"linux-binary-7.*"))
    assert offer.lacks == "linux-image-7.3.4+deb13-amd64 needs linux-binary-7.3.4+deb13-amd64 = 7.3.4-1~bpo13+1"


def test_emulators_packages(archive: Archive) -> None:
    packages = recorded("qemu")
    newest = "1:10.0.2+ds-2+deb13u1~bpo12+1"
    assert best(emulator.offers(index_of(archive, packages))).packages == (
        f"qemu-system-x86={newest}",
        f"qemu-system-common={newest}",
        f"qemu-system-data={newest}",
        "seabios=1.16.3-2~bpo12+1",
    )
    offers = emulator.offers(index_of(archive, without(packages, "qemu-system-common", newest)))
    assert offers[0].lacks == f"qemu-system-x86 needs qemu-system-common = {newest}"
    assert best(offers).what == "qemu-system-x86 1:7.2+dfsg-7+deb12u18+b3"
    # and a seabios that is too old for it
    assert "needs seabios >> 1.16.3-1~" in emulator.offers(index_of(archive, without(packages, "seabios", "1.16.3-2~bpo12+1")))[0].lacks


def test_bochs_packages(archive: Archive) -> None:
    packages = recorded("bochs")
    offer = best(bochs.offers(index_of(archive, packages)))
    assert offer.what == "bochs 3.0+dfsg-1"
    names = {name.partition("=")[0] for name in offer.packages}
    # its libraries down to the loader, and no other display than the one that is asked for
    assert {"bochs", "bochs-term", "bochsbios", "vgabios", "libc6", "libgtk-3-0t64", "libx11-6", "libncurses6"} <= names
    assert names == {one["Package"] for one in packages}
    (offer,) = bochs.offers(index_of(archive, without(packages, "libltdl7")))
    assert offer.packages == () and offer.lacks == "bochs needs libltdl7 >= 2.5.4"
    (offer,) = bochs.offers(index_of(archive, without(packages, "bochs-term")))
    assert offer.packages == () and offer.lacks == "there is no bochs-term 3.0+dfsg-1"


def test_only_the_bochs_that_works(archive: Archive, cache: Path) -> None:
    """What is newer, or older, is not tried: one sentence says what there is, what is wanted, and how to do without."""
    others = [package(name, version) for name in ("bochs", "bochs-term") for version in ("3.1+dfsg-1", "2.7+dfsg-4", "3.00-1")]
    archive.publish([*without(recorded("bochs"), "bochs(-term)?"), *others])
    with pytest.raises(DebianError) as error:
        bochs.unpacked()
    said = str(error.value)
    assert said.startswith("the test VM's Bochs cannot be had from Debian's trixie:\n")
    for version in ("3.1+dfsg-1", "2.7+dfsg-4", "3.00-1"):
        assert f"\n  bochs {version}: it is not 3.0\n" in said
    assert said.endswith("to test without Intel: make test VENDORS=amd BRIEF_VENDORS=")
    assert not list(cache.glob("bochs*"))


def test_testing_in_bochs_is_a_decision() -> None:
    """Whoever does not ask to do without Intel gets it: the tests are not skipped because something is missing."""

    def asked(*variables: str) -> list[str]:
        command = ["make", "--dry-run", "--no-print-directory", "-C", str(debian.PROJECT), "test", *variables]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.replace("\\\n", " ")
        (line,) = [line for line in said.splitlines() if " -m pytest " in line]
        return re.findall(r"--(?:brief-)?vendor \w+", line)

    assert asked() == ["--vendor amd", "--brief-vendor intel"]
    assert asked("VENDORS=amd", "BRIEF_VENDORS=") == ["--vendor amd"]
    assert asked("VENDORS=intel") == ["--vendor intel", "--brief-vendor amd"]


@pytest.mark.parametrize(
    ("packages", "chosen"),
    [
        # the first alternative that is there; what is no part is not looked at
        ([package("a", "1", "part-x | part-y, libc6"), package("part-y", "1")], ["a=1", "part-y=1"]),
        # the second alternative, because the first one needs what is not there
        (
            [package("a", "1", "part-x | part-y, part-y"), package("part-x", "1", "part-z"), package("part-y", "1")],
            ["a=1", "part-y=1"],
        ),
        ([package("a", "1", "part-v"), package("part-real", "1", Provides="part-v")], ["a=1", "part-real=1"]),
        ([package("a", "1", "part-v (>= 2)"), package("part-real", "1", Provides="part-v (= 1)")], None),
        ([package("a", "1", **{"Pre-Depends": "part-x"}), package("part-x", "1")], ["a=1", "part-x=1"]),
        # ~ is before everything
        ([package("a", "1", "part-x (>= 2)"), package("part-x", "2~rc1")], None),
        ([package("a", "1", "part-x (<< 2)"), package("part-x", "2"), package("part-x", "2~rc1")], ["a=1", "part-x=2~rc1"]),
        # the newest one of x is not what y takes, which comes later
        (
            [package("a", "1", "part-x (>= 1), part-y"), package("part-x", "1"), package("part-x", "2"), package("part-y", "1", "part-x (= 1)")],
            ["a=1", "part-x=1", "part-y=1"],
        ),
        ([package("a", "1", "part-x"), package("part-x", "1", "part-y (= 1)"), package("part-y", "2")], None),
        ([package("a", "1", "part-x (= 1), part-x (= 2)"), package("part-x", "1"), package("part-x", "2")], None),
    ],
)
def test_relations(archive: Archive, packages: list[Package], chosen: list[str] | None) -> None:
    offer = index_of(archive, packages).offer("a", [("a", "1")], "part-.+")
    assert sorted(offer.packages) == (chosen or [])
    assert bool(offer.lacks) == (chosen is None)


def test_nothing_complete(archive: Archive, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    archive.publish(without(recorded("linux-6.1"), "linux-image-6.1.*"))
    make_cached_kernel(cache, "6.12", "6.12.95-1~bpo12+1")
    with pytest.raises(DebianError) as error:
        kernels.kernel("6.1")
    assert "\n  6.1.0-57-amd64 (6.1.192-3): there is no linux-image-6.1.0-57-amd64 6.1.192-3\n" in str(error.value)
    assert str(error.value).endswith("try again later, or use a kernel of the cache (KERNEL=6.12)")
    assert sorted(path.name for path in (cache / "kernels").iterdir()) == [".lock", "6.12"]
    # nor was it asked again: the lists are fresh
    assert "failed" not in capfd.readouterr().err


def test_nothing_of_that_name(archive: Archive) -> None:
    archive.publish(recorded("qemu"))
    with pytest.raises(DebianError, match="(?s)kernel 6.1 cannot be had from Debian's bookworm and bookworm-security:.*nothing of that name.*try again later$"):
        kernels.kernel("6.1")


@pytest.mark.parametrize("how", ["vanished", "changed"])
def test_index_changes_before_the_download(archive: Archive, how: str) -> None:
    archive.publish(kernel_image("6.1.0-56-amd64", "6.1.192-2"), a_file)
    asked = 0

    def choose(index: Index) -> list[Offer]:
        nonlocal asked
        asked += 1
        offers = six_one(index)
        if asked == 1:
            if how == "vanished":
                archive.publish(kernel_image("6.1.0-57-amd64", "6.1.192-3"), a_file)
            else:
                # the same names and versions, not the same files
                archive.publish(kernel_image("6.1.0-56-amd64", "6.1.192-2"), lambda one, root: a_file({**one, "Version": "again"}, root))
        return offers

    _, unpacked = fetch("kernel 6.1", choose)
    assert set(unpacked.values()) == {"6.1.192-3" if how == "vanished" else "again"}
    assert asked == 2


def test_listed_and_not_there(archive: Archive, capfd: pytest.CaptureFixture[str]) -> None:
    """A mirror has new lists before it has the packages: the older kernel is taken, and nothing of the newer."""
    older = kernel_image("6.1.0-55-amd64", "6.1.192-1")
    newer = kernel_image("6.1.0-56-amd64", "6.1.192-2")
    archive.publish([*older, *newer], a_file)
    archive.file(newer[1]).unlink()
    _, unpacked = fetch("kernel 6.1", six_one)
    assert unpacked == {one["Package"]: one["Version"] for one in older}
    assert "kernel 6.1 is 6.1.0-55-amd64 (6.1.192-1), because 6.1.0-56-amd64 (6.1.192-2) cannot be had: Failed to fetch" in capfd.readouterr().err


def test_no_end_of_changes(archive: Archive, cache: Path) -> None:
    archive.publish(kernel_image("6.1.0-56-amd64", "6.1.192-2"), a_file)
    for deb in archive.directory.glob("*.deb"):
        deb.unlink()
    asked = []

    def choose(index: Index) -> list[Offer]:
        asked.append(index)
        return six_one(index)

    with pytest.raises(DebianError, match="(?s)kernel 6.1 cannot be had .*6.1.192-2.*Failed to fetch.*try again later"):
        fetch("kernel 6.1", choose)
    assert 2 <= len(asked) <= debian.ATTEMPTS
    assert not (cache / "into").exists() and not list(cache.glob(".debs-*"))


def test_old_lists_while_the_new_ones_do_not_fit(archive: Archive, capfd: pytest.CaptureFixture[str]) -> None:
    """A mirror has a new Release before it has the lists that it is about."""
    archive.publish(kernel_image("6.1.0-56-amd64", "6.1.192-2"), a_file)
    apt = Apt("test")
    apt._configure()
    apt._run("update")
    release = archive.directory / "Release"
    release.write_text(re.sub(r" \w{64} ", f" {'0' * 64} ", release.read_text()).replace("22:00", "23:00"))
    _, unpacked = fetch("kernel 6.1", six_one)
    assert set(unpacked.values()) == {"6.1.192-2"}
    assert "apt-get update failed" in capfd.readouterr().err


def test_first_lists_come_late(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without lists of before, they are asked for again."""
    archive.publish(kernel_image("6.1.0-56-amd64", "6.1.192-2"), a_file)
    release = archive.directory / "Release"
    right = release.read_text()
    release.write_text(re.sub(r" \w{64} ", f" {'0' * 64} ", right))
    monkeypatch.setattr(time, "sleep", lambda _: release.write_text(right))
    _, unpacked = fetch("kernel 6.1", six_one)
    assert set(unpacked.values()) == {"6.1.192-2"}


def test_unreachable(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # nobody serves there
    monkeypatch.setattr(debian, "sources", lambda *_: "deb [trusted=yes arch=amd64] http://127.0.0.1:9/ ./\n")
    with pytest.raises(DebianError, match="(?s)kernel 6.1 cannot be had.*apt-get update: .*127.0.0.1.*try again later"):
        kernels.kernel("6.1")
    assert [path.name for path in (cache / "kernels").iterdir()] == [".lock"]


def make_cached_kernel(cache: Path, version: str, package_version: str, release: str = "1-amd64") -> None:
    generated = cache / "kernels" / version / "usr" / "src" / f"linux-headers-{release}" / "include" / "generated"
    generated.mkdir(parents=True, exist_ok=True)
    (generated / "utsversion.h").write_text(f'#define UTS_VERSION "#1 SMP Debian {package_version} (2026-11-16)"\n')
    (cache / "kernels" / version / "release").write_text(f"{release}\n")


def test_what_is_cached_needs_no_archive(archive: Archive, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cached_kernel(cache, "6.1", "6.1.192-2")
    archive.publish(recorded_sources(), linux_source)
    kernels.linux_source("6.1", ["Makefile"])
    for name in ("trixie", "bookworm"):
        stamp = cache / "roots" / name / "etc" / "memslot-root"
        stamp.parent.mkdir(parents=True)
        stamp.write_text(roots.APT_SETTINGS)
    monkeypatch.setattr(emulator, "_unpack", lambda root: root.mkdir())
    monkeypatch.setattr(emulator, "take_bugs_out", lambda program: None)
    fetched = emulator.emulator()
    (cache / "bochs-3.0").mkdir()
    monkeypatch.undo()
    monkeypatch.setattr(bochs, "CACHE", cache)
    monkeypatch.setattr(emulator, "CACHE", cache)
    monkeypatch.setattr(kernels, "CACHE", cache)
    monkeypatch.setattr(roots, "CACHE", cache)

    def nothing_runs(*arguments: object, **_: object) -> None:
        pytest.fail(f"{arguments} was run")

    monkeypatch.setattr(subprocess, "run", nothing_runs)
    monkeypatch.setattr(subprocess, "Popen", nothing_runs)
    assert kernels.kernel("6.1").package_version == "6.1.192-2"
    assert (kernels.linux_source("6.1", ["Makefile"]) / "Makefile").exists()
    assert emulator.emulator() == fetched and fetched.root.parent == cache
    assert bochs.unpacked() == cache / "bochs-3.0"
    assert roots.clean() == cache / "roots" / "bookworm"
    assert kernels._root("trixie") == cache / "roots" / "trixie"


# Linux's sources


def recorded_sources() -> list[Package]:
    return [one for one in recorded("linux-6.1") if one["Package"] == "linux-source-6.1"]


def linux_source(one: Package, root: Path) -> None:
    """A linux-source package whose files say of which version they are."""
    directory = root / "usr" / "src"
    directory.mkdir(parents=True)
    tree = directory / one["Package"]
    tree.mkdir()
    for name in ("Makefile", "Kbuild"):
        (tree / name).write_text(one["Version"])
    subprocess.run(["tar", "-C", str(directory), "-cJf", f"{tree}.tar.xz", tree.name], check=True)
    shutil.rmtree(tree)


def makefile() -> str:
    return (kernels.linux_source("6.1", ["Makefile"]) / "Makefile").read_text()


def test_source_is_the_kernels(archive: Archive, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    archive.publish(recorded_sources(), linux_source)
    make_cached_kernel(cache, "6.1", "6.1.192-2")
    assert makefile() == "6.1.192-2"
    # a newer kernel, whose source comes with it
    make_cached_kernel(cache, "6.1", "6.1.192-3")
    assert makefile() == "6.1.192-3"
    assert " cannot be had" not in capfd.readouterr().err
    # one whose source is no longer there: the next newer one's, and a line says so, once
    make_cached_kernel(cache, "6.1", "6.1.180-1")
    assert makefile() == makefile() == "6.1.187-1"
    said = capfd.readouterr().err
    assert said.count("because linux-source-6.1 6.1.180-1 cannot be had: there is no linux-source-6.1 6.1.180-1") == 1
    # and one that is newer than all
    make_cached_kernel(cache, "6.1", "6.1.200-1")
    assert makefile() == "6.1.192-3"


def test_sources_of_two_versions_are_not_mixed(archive: Archive, cache: Path) -> None:
    make_cached_kernel(cache, "6.1", "6.1.180-1")
    archive.publish([package("linux-source-6.1", "6.1.187-1")], linux_source)
    assert makefile() == "6.1.187-1"
    archive.publish([package("linux-source-6.1", "6.1.190-1")], linux_source)
    source = kernels.linux_source("6.1", ["Kbuild"])
    assert [(source / name).read_text() for name in ("Makefile", "Kbuild")] == ["6.1.190-1"] * 2


def test_debug_kernel_is_of_the_kernels_version(archive: Archive, cache: Path) -> None:
    archive.publish(recorded_sources(), linux_source)
    target = cache / "kernels" / "6.1-debug"
    target.mkdir(parents=True)
    kernels._unpack_source("6.1", "6.1.192-2", target / "source", ["Makefile"])
    (target / "config").write_text(kernels._fragment("6.1-debug"))
    (target / "release").write_text("6.1.192\n")
    # alone, it is what there is
    assert kernels._is_cached("6.1-debug", target)
    make_cached_kernel(cache, "6.1", "6.1.192-2")
    assert kernels._is_cached("6.1-debug", target)
    make_cached_kernel(cache, "6.1", "6.1.192-3")
    assert not kernels._is_cached("6.1-debug", target)


# Roots


def fake_debootstrap(directory: Path, monkeypatch: pytest.MonkeyPatch, succeeds_at: int) -> Path:
    """One that leaves something behind when it fails; returns the file with a line for each time."""
    program, times = directory / "debootstrap", directory / "times"
    program.write_text(
        f"""#!/bin/sh
echo "$@" >> {times}
for root; do case $root in {directory}/*) mkdir -p "$root/$(wc -l < {times})"; esac; done
echo "E: Couldn't download packages: libc6"
[ "$(wc -l < {times})" -ge {succeeds_at} ]
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    monkeypatch.setattr(debian, "PAUSE", 0)
    monkeypatch.setattr(debian, "mirrors", lambda: {"Debian": "http://127.0.0.1:9/"})
    return times


def test_debootstrap_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_debootstrap(tmp_path, monkeypatch, succeeds_at=2)
    debian.debootstrap(tmp_path / "root", "bookworm")
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["2"]


def test_debootstrap_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = fake_debootstrap(tmp_path, monkeypatch, succeeds_at=99)
    with pytest.raises(DebianError, match="(?s)^debootstrap of bookworm: .*Couldn't download packages: libc6.*try again later$"):
        debian.debootstrap(tmp_path / "root", "bookworm")
    assert len(times.read_text().splitlines()) == debian.ATTEMPTS


# What is installed on the machine


@pytest.mark.parametrize(("succeeds_at", "status"), [(1, 0), (2, 0), (4, 0), (99, 1)])
def test_setup_asks_again(tmp_path: Path, succeeds_at: int, status: int) -> None:
    """With an apt whose nth installation succeeds, and whose updates fail; what it writes for programs is shown."""
    log = tmp_path / "log"
    programs = {
        "dpkg-query": "exit 1",
        "id": "echo 0",
        "sleep": "exit 0",
        "apt-get": f"""
            echo "$1" >> {log}
            [ "$1" = install ] || exit
            printf '%s\\n' dlstatus:1:9.9:one dlstatus:2:12.5:two dlstatus:3:19:three pmstatus:libc6:amd64:40:four >&3
            [ $(grep -c install {log}) -ge {succeeds_at} ] || exit
            echo pmstatus:zstd:100.0000:five >&3
        """,
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([str(debian.SETUP)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status
    times = min(succeeds_at, 4)
    assert log.read_text().split() == ["install", *["update", "install"] * (times - 1)]
    assert done.stderr.count("going by the package lists that are there") == times - 1
    assert done.stderr.endswith("try again later\n") == bool(status)
    assert done.stderr.count("setup: downloading 10%\nsetup: installing 40%") == times
    assert done.stderr.endswith("setup: downloading 10%\nsetup: installing 40% 100%\n") != bool(status)
    assert done.stdout == ""


# Interrupted


def test_replacement_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with debian.replacement(target) as new:
        new.mkdir()
        (new / "old").touch()
    with pytest.raises(DebianError), debian.replacement(target) as new:
        new.mkdir()
        raise DebianError
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert [path.name for path in target.iterdir()] == ["old"]

    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); import debian, pathlib\n"
        "with debian.replacement(pathlib.Path(sys.argv[2])) as new: new.mkdir(); os.kill(os.getpid(), 9)"
    )
    scripts = str(Path(debian.__file__).parent)
    assert subprocess.run([sys.executable, "-c", code, scripts, str(target)], check=False).returncode == -signal.SIGKILL
    assert [path.name for path in target.iterdir()] == ["old"]
    assert len(list(tmp_path.iterdir())) == 2
    with debian.replacement(target) as new:
        new.mkdir()
        (new / "new").touch()
    # what the killed one left is gone, too
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert [path.name for path in target.iterdir()] == ["new"]


def test_what_cannot_be_unpacked_leaves_nothing(archive: Archive, cache: Path) -> None:
    archive.publish(recorded_sources(), linux_source)
    make_cached_kernel(cache, "6.1", "6.1.192-2")
    with pytest.raises(DebianError, match="no-such-file"):
        kernels.linux_source("6.1", ["Makefile", "no-such-file"])
    assert [path.name for path in (cache / "linux-source").iterdir()] == [".lock"]
