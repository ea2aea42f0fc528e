# SPDX-License-Identifier: GPL-2.0
"""make install, DKMS and the Debian packages: in Debian 12 roots, and loaded in the test VM from there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import debian
import kernels
import pytest
import roots
from roots import Root
from runner import VM, Outcome

PROJECT = debian.PROJECT
VERSION = re.findall(r'^PACKAGE_VERSION="(.*)"$', (PROJECT / "dkms.conf").read_text(), re.M)[0]
EXAMPLE = PROJECT / "userlib" / "examples" / "replace.cpp"

# What the module's source, the headers and the tools are at least.
INSTALLED = {
    f"/usr/src/memslot-{VERSION}/dkms.conf",
    f"/usr/src/memslot-{VERSION}/versions.mk",
    f"/usr/src/memslot-{VERSION}/module/Kbuild",
    f"/usr/src/memslot-{VERSION}/module/commit.c",
    f"/usr/src/memslot-{VERSION}/module/compat/compat.h",
    f"/usr/src/memslot-{VERSION}/uapi/linux/memslot.h",
    "PREFIX/lib/udev/rules.d/60-memslot.rules",
    "PREFIX/lib/modules-load.d/memslot.conf",
    "PREFIX/include/memslot.hpp",
    "PREFIX/include/linux/memslot.h",
    "PREFIX/share/pkgconfig/memslot.pc",
    "PREFIX/share/cmake/memslot/memslotConfig.cmake",
    "PREFIX/share/man/man4/memslot.4",
    *(f"PREFIX/share/bash-completion/completions/{path.parent.name}" for path in PROJECT.glob("tools/*/Makefile")),
    *(f"PREFIX/share/zsh/site-functions/_{path.parent.name}" for path in PROJECT.glob("tools/*/Makefile")),
    *(f"PREFIX/bin/{path.parent.name}" for path in PROJECT.glob("tools/*/Makefile")),
    *(f"PREFIX/share/man/man1/{path.name}" for path in PROJECT.glob("tools/*/*.1")),
}


def files(root: Root) -> set[str]:
    """The files in a root, and whatever has our name; but for what apt, dpkg, DKMS and depmod keep for themselves."""
    own = r"/(proc|dev|tmp|var/(cache|lib/(apt|dpkg|dkms/mok\.(key|pub))|log)|usr/lib/modules/[^/]+/modules\..*)(/|$)"
    found = root.run("find", "/", "-xdev", "(", "!", "-type", "d", "-o", "-name", "*memslot*", ")").splitlines()
    return {path for path in found if not re.match(own, path) and not path.startswith(str(PROJECT))}


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-C", PROJECT, *arguments], capture_output=True, text=True)


def find(directory: Path) -> set[str]:
    return {f"/{path.relative_to(directory)}" for path in directory.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize("prefix", ["/usr/local", "/opt/memslot"])
def test_install_and_uninstall(prefix: str, tmp_path: Path) -> None:
    where = [f"DESTDIR={tmp_path}", f"PREFIX={prefix}"]
    done = make("install", *where)
    assert done.returncode == 0, done.stderr
    installed = find(tmp_path)
    assert {path.replace("PREFIX", prefix) for path in INSTALLED} <= installed
    assert all(path.startswith((f"{prefix}/", f"/usr/src/memslot-{VERSION}/")) for path in installed)
    sources = {str(path.relative_to(PROJECT)) for path in (PROJECT / "module").rglob("*.[ch]") if path.suffixes[0] != ".mod"}
    assert sources <= {path.removeprefix(f"/usr/src/memslot-{VERSION}/") for path in installed}

    known = tmp_path / "var/lib/dkms/memslot" / VERSION
    known.mkdir(parents=True)
    refused = make("uninstall", *where)
    assert refused.returncode != 0 and f"dkms remove memslot/{VERSION} --all" in refused.stderr
    assert find(tmp_path) == installed
    known.rmdir()

    done = make("uninstall", *where)
    assert done.returncode == 0, done.stderr
    assert find(tmp_path) == set()


def test_one_version() -> None:
    changelog = (PROJECT / "debian" / "changelog").read_text()
    assert changelog.startswith(f"memslot ({VERSION}) ")
    assert set(re.findall(r"memslot[-/](\d+\.\d+\.\d+)", (PROJECT / "README.md").read_text())) == {VERSION}
    assert f'"memslot {VERSION}"' in (PROJECT / "uapi" / "man" / "memslot.4").read_text()


def test_warnings_are_errors_for_ourselves_only() -> None:
    """What users and packages build must not stop because their compiler knows one more warning."""
    for tool in PROJECT.glob("tools/*/Makefile"):
        for flag in ("", "-Werror"):
            told = make("--dry-run", "--always-make", "-C", str(tool.parent), f"WERROR={flag}").stdout
            compiled = [line for line in told.splitlines() if " -c " in line]
            assert compiled and all(("-Werror" in line) == bool(flag) for line in compiled)
    assert "\ntest: export WERROR := -Werror\n" in (PROJECT / "Makefile").read_text()
    assert "WERROR" not in (PROJECT / "debian" / "rules").read_text()


@pytest.fixture(scope="module")
def release() -> str:
    """The kernel that the test VM boots."""
    return kernels.kernel("6.1").release


@pytest.fixture(scope="module")
def older(release: str) -> str:
    """The kernel that was Debian's before it."""
    root = Root(roots.clean(), "older")
    names = root.run("apt-cache", "pkgnames", "linux-headers-6.1.0-").split()
    found = [int(match[1]) for name in names if (match := re.fullmatch(r"linux-headers-6\.1\.0-(\d+)-amd64", name))]
    number = int(release.split("-")[1])
    assert number in found, f"Debian has no headers of {release} any more; remove .cache/kernels/6.1 for a newer kernel"
    lower = [other for other in found if other < number]
    assert lower, "Debian has no older kernel to upgrade from"
    return f"6.1.0-{max(lower)}-amd64"


LOAD = r"""
set -eu
root=$1 module=$2 rules=$3 example=$4
# udevd comes from the root: the host may have none
for directory in dev sys proc run; do mount --rbind /$directory "$root/$directory"; done
mkdir -p /run/udev/rules.d
cp "$rules" /run/udev/rules.d
export SYSTEMD_IGNORE_CHROOT=1
chroot "$root" /lib/systemd/systemd-udevd --daemon
insmod "$module"
echo "version $(cat /sys/module/memslot/version)"
chroot "$root" udevadm settle
chroot "$root" stat -c 'device %a %U %G' /dev/memslot
chroot "$root" udevadm info --query=property --property=CURRENT_TAGS /dev/memslot
"$example"
rmmod memslot
"""


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that uses the module."""
    program = PROJECT / "build" / "packaging" / "replace"
    program.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++20", f"-I{PROJECT}/userlib", f"-I{PROJECT}/uapi"]
    subprocess.run(["g++", *flags, str(EXAMPLE), "-o", str(program)], check=True)
    return program


def load(root: Root, release: str, prefix: str, example: Path) -> None:
    """Loads a root's module in the VM, where udev gives its device what /dev/kvm gets, and a program uses it."""
    module = root.written / "usr/lib/modules" / release / "updates/dkms/memslot.ko"
    rules = root.written / prefix.lstrip("/") / "lib/udev/rules.d/60-memslot.rules"
    with VM("6.1", kvm="") as vm:
        result = vm.run("/bin/sh", "-c", LOAD, "sh", str(roots.tools()), str(module), str(rules), str(example))
    assert result.outcome is Outcome.OK and not result.complaints, result.report()
    assert "device 660 root kvm\n" in result.stdout
    assert re.search(r"^CURRENT_TAGS=.*:uaccess:", result.stdout, re.M), result.stdout
    assert f"version {VERSION}\n" in result.stdout
    assert "1 created, 1 replaced" in result.stdout


@pytest.fixture(scope="module")
def dkms_root(older: str) -> Root:
    """A root with DKMS and a kernel's headers, before anything of this project came in."""
    root = Root(roots.tools(), "dkms")
    root.install(f"linux-headers-{older}")
    return root


def test_dkms(dkms_root: Root, older: str, release: str, example: Path) -> None:
    root = dkms_root
    before = files(root)

    assert make("tools").returncode == 0
    root.shell(f"make -C {PROJECT} install", shared=[PROJECT])
    root.shell(f"dkms add memslot/{VERSION} && dkms build memslot/{VERSION} -k {older} && dkms install memslot/{VERSION} -k {older}")
    status = root.run("dkms", "status").splitlines()
    assert status == [f"memslot/{VERSION}, {older}, x86_64: installed"]

    # The package of a newer kernel's headers calls DKMS
    root.install(f"linux-headers-{release}")
    status = root.run("dkms", "status").splitlines()
    assert sorted(status) == sorted(f"memslot/{VERSION}, {kernel}, x86_64: installed" for kernel in (older, release))
    for kernel in (older, release):
        assert root.run("modinfo", "-k", kernel, "-F", "vermagic", "memslot").split()[0] == kernel
        assert root.run("modinfo", "-k", kernel, "-F", "signer", "memslot").strip() == "DKMS module signing key"
    load(root, release, "/usr/local", example)

    root.run("dkms", "remove", f"memslot/{VERSION}", "--all")
    root.shell(f"make -C {PROJECT} uninstall", shared=[PROJECT])
    root.run("apt-get", "-qq", "-y", "--autoremove", "purge", f"linux-headers-{release}")
    assert files(root) == before


@pytest.fixture(scope="module")
def packages() -> Iterator[tuple[Root, dict[str, Path]]]:
    """The Debian packages, by name, and where they were built."""
    root = Root(roots.tools(), "packages")
    built = roots.build_packages(root)
    yield root, {path.name.partition("_")[0]: path for path in built if "-dbgsym" not in path.name}


def test_packages_are_clean_under_lintian(packages: tuple[Root, dict[str, Path]]) -> None:
    root, by_name = packages
    assert set(by_name) == {"memslot-dkms", "libmemslot-dev", "memslot-tools"}
    # the project has no mail address
    without = "bogus-mail-host,bogus-mail-host-in-debian-changelog"
    said = root.shell(f"lintian --allow-root --suppress-tags {without} --fail-on error,warning /build/*.changes")
    assert said.strip() == ""


def test_packages_in_a_clean_root(packages: tuple[Root, dict[str, Path]], release: str, example: Path) -> None:
    root = Root(roots.clean(), "clean")
    before = files(root)
    archives = root.written / "var/cache/apt/archives"
    archives.mkdir(parents=True)
    for package in (roots.tools() / "var/cache/apt/archives").glob("*.deb"):
        (archives / package.name).hardlink_to(package)
    ours = []
    for package in packages[1].values():
        ours.append(f"/var/cache/apt/archives/{package.name}")
        (archives / package.name).hardlink_to(package)
    root.install(f"linux-headers-{release}", "g++", "pkg-config", "udev", *ours)

    assert root.run("dkms", "status").splitlines() == [f"memslot/{VERSION}, {release}, x86_64: installed"]
    load(root, release, "/usr", example)
    for tool in PROJECT.glob("tools/*/Makefile"):
        name = tool.parent.name
        assert f"sage: {name}" in root.run(name, "--help")
        assert (root.written / f"usr/share/man/man1/{name}.1.gz").exists()
    said = root.shell(
        f"g++ -std=c++20 $(pkg-config --cflags memslot) {EXAMPLE} -o /tmp/replace && ! /tmp/replace 2>&1",
        shared=[EXAMPLE.parent],
    )
    assert "/dev/kvm: " in said or "modprobe memslot" in said

    root.run("apt-get", "-qq", "-y", "purge", *packages[1])
    assert [path for path in files(root) - before if "memslot" in path] == []
