#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Debian kernels for the test VM, unpacked into the project's cache.

Nothing is installed: the packages are downloaded and unpacked below
.cache/kernels/<version>/, and the machine's own kernel and /boot stay as they are.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from debian import (
    ADVICE, CACHE, HOST_SUITE, KEYRING, PROJECT, Apt, DebianError, Index, Offer, debootstrap, locked, newest_first, output,
    progress, replacement, setup_host,
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where a kernel comes from, and what it is built for."""

    suites: tuple[str, ...] = ()  # of Debian
    root: str | None = None  # the Debian whose compiler and libraries its headers need; None: this machine's
    # Built here: from another one's sources, with fragments of a configuration that are beside this file.
    built_from: str | None = None
    config: tuple[str, ...] = ()
    make: tuple[str, ...] = ()  # what make is told besides
    finds_races: bool = False  # by KCSAN


# Every kernel that the VM can boot, oldest first; versions.mk says which ones the module supports.
KERNELS: dict[str, Source] = {
    "6.1": Source((HOST_SUITE, f"{HOST_SUITE}-security")),
    "6.12": Source((f"{HOST_SUITE}-backports",)),
    "7.3": Source(("trixie-backports",), root="trixie"),
    "6.1-debug": Source(
        built_from="6.1",
        config=("machine.config", "debug.config"),
        # The entry that QEMU jumps to, and memcmp() that it calls, run before KASAN has its shadow.
        make=("KASAN_SANITIZE_enlighten.o=n", "KASAN_SANITIZE_string.o=n"),
    ),
    "6.1-kcsan": Source(
        built_from="6.1",
        config=("machine.config", "kcsan.config"),
        # They run before there is a current task, too.  And races.py looks up which line of KVM a report is about.
        make=("KCSAN_SANITIZE_enlighten.o=n", "KCSAN_SANITIZE_string.o=n", "CFLAGS_MODULE=-g"),
        finds_races=True,
    ),
}

# What building a module takes, in a root of another Debian.
ROOT_PACKAGES = ("gcc-14-for-host", "make", "libelf1t64", "libssl3t64", "pahole", "sparse")


# Compressions that Debian's kernels come in.
DECOMPRESSORS = {
    b"\xfd7zXZ": ("xz", "-dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", "-dc"),
}


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel."""

    version: str
    release: str
    root: Path

    @property
    def image(self) -> Path:
        """The uncompressed kernel: QEMU boots it directly (PVH), emulated decompression takes seconds."""
        return self.root / "boot" / f"vmlinux-{self.release}"

    @property
    def modules(self) -> Path:
        return self.root / "lib" / "modules" / self.release

    @property
    def headers(self) -> Path:
        return self.root / "usr" / "src" / f"linux-headers-{self.release}"

    @property
    def package_version(self) -> str:
        """Debian's version of the packages that it came in."""
        text = (self.headers / "include" / "generated" / "utsversion.h").read_text()
        match = re.search(r" Debian (\S+) ", text)
        if not match:
            raise DebianError(f"{self.headers} does not say which of Debian's versions it is; remove {self.root}")
        return match[1]


# The packages that a kernel and its headers are made of, among what they depend on.
PARTS = r"linux-(?:base|binary|modules|headers|kbuild|compiler)-.+"


def kernel_offers(index: Index, version: str) -> list[Offer]:
    """The kernels of a version (6.1) that the archive knows, newest first; some of them in parts only.

    The metapackages are not asked: while a new kernel is being published, they may name one that is not there, and
    older kernels stay for a while.  An image and headers of one name differ in what is inside from version to version,
    and the module looks there, so both have to be of the same.
    """
    # not the cloud's, nor PREEMPT_RT's
    pattern = re.compile(rf"linux-(?:image|headers)-({re.escape(version)}\.\d[^-]*(?:-\d+)?-amd64)")
    releases: dict[str, set[str]] = {}
    for match in index.matches(pattern):
        for number in index.versions(match[0]):
            releases.setdefault(number, set()).add(match[1])
    return [
        index.offer(f"{release} ({number})", [(f"linux-image-{release}", number), (f"linux-headers-{release}", number)], PARTS)
        for number in newest_first(releases)
        for release in sorted(releases[number], reverse=True)
    ]


def _rewrite_paths(root: Path) -> None:
    """Makes the headers find each other wherever they were unpacked."""
    for makefile in root.glob("usr/src/linux-headers-*/Makefile"):
        text = makefile.read_text()
        makefile.write_text(
            re.sub(r"^(include |KBUILD_OUTPUT=)/usr/src/", r"\1$(dir $(lastword $(MAKEFILE_LIST)))../", text, flags=re.M)
        )
    for link in (*root.glob("usr/src/linux-*/*"), *root.glob("lib/modules/*/*")):
        if link.is_symlink() and (to := os.readlink(link)).startswith("/usr/"):
            link.unlink()
            link.symlink_to(os.path.relpath(root / to[1:], link.parent.resolve()))


def _merge_usr(root: Path, release: str) -> None:
    """Since 7.x, all is below /usr; the links are where it was before."""
    if (root / "lib").exists():
        return
    (root / "lib").symlink_to("usr/lib")
    (root / "boot").mkdir()
    (root / "boot" / f"vmlinuz-{release}").symlink_to(f"../usr/lib/modules/{release}/vmlinuz")


def _decompress_kernel(boot: Path, release: str) -> None:
    """Takes vmlinux out of vmlinuz; Documentation/x86/boot.rst has the offsets."""
    image = (boot / f"vmlinuz-{release}").read_bytes()
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (image[0x1F1] + 1) * 512 + offset
    payload = image[start : start + length]
    for magic, command in DECOMPRESSORS.items():
        if payload.startswith(magic):
            break
    else:
        raise DebianError(f"{boot}/vmlinuz-{release} has an unknown compression ({payload[:4].hex()})")
    with open(boot / f"vmlinux-{release}", "wb") as vmlinux:
        # the last four bytes are the size, which the decompressors do not know
        subprocess.run(command, input=payload[:-4], stdout=vmlinux, check=True)


def _unpack_kernel(version: str, target: Path) -> None:
    apt = Apt(*KERNELS[version].suites)
    cached = [other for other in KERNELS if other != version and _is_cached(other, CACHE / "kernels" / other)]
    advice = f"{ADVICE}, or use a kernel of the cache (KERNEL={', KERNEL='.join(cached)})" if cached else ADVICE
    with replacement(target) as root:
        offer = apt.fetch(f"kernel {version}", lambda index: kernel_offers(index, version), root, advice)
        release = offer.what.partition(" ")[0]
        _merge_usr(root, release)
        _rewrite_paths(root)
        _decompress_kernel(root / "boot", release)
        output(["/sbin/depmod", "-b", str(root), release])
        (root / "release").write_text(release + "\n")


def _fragment(version: str) -> str:
    directory = Path(__file__).resolve().parent
    return "".join((directory / name).read_text() for name in KERNELS[version].config)


def _settings(fragment: str) -> list[str]:
    """What a fragment sets, in whatever order."""
    return sorted(line for line in fragment.splitlines() if line.startswith("CONFIG_"))


def _build_kernel(version: str, target: Path) -> None:
    """Builds a kernel of our own configuration; takes minutes, and goes on where it was interrupted."""
    base, fragment = KERNELS[version].built_from, _fragment(version)
    assert base
    setup_host()
    source, build = target.resolve() / "source", target.resolve() / "build"
    wanted = kernel(base).package_version
    if not _has_source(source, wanted, WHOLE_SOURCE_PATHS):
        # make goes by the files' times, and those of the other version's are no younger
        shutil.rmtree(build, ignore_errors=True)
        _unpack_source(base, wanted, source, WHOLE_SOURCE_PATHS)
    progress(f"building kernel {version} in {target.relative_to(PROJECT)}: this takes about ten minutes, once")
    build.mkdir(parents=True, exist_ok=True)
    (target / "release").unlink(missing_ok=True)
    (target / "config").write_text(fragment)
    make = ["make", "--silent", "-C", str(source), f"O={build}", f"-j{len(os.sched_getaffinity(0))}"]
    make += KERNELS[version].make

    output([*make, f"KCONFIG_ALLCONFIG={target.resolve() / 'config'}", "allnoconfig"])
    got = (build / ".config").read_text().splitlines()
    lost = [line for line in _settings(fragment) if line not in got]
    if lost:
        raise DebianError(f"kernel {version} cannot be configured with {' '.join(lost)}")
    output([*make, "vmlinux", "modules"])
    release = output([*make, "kernelrelease"]).strip()
    output([*make, f"INSTALL_MOD_PATH={target.resolve()}", "DEPMOD=/sbin/depmod", "modules_install"])

    (target / "boot").mkdir(exist_ok=True)
    shutil.copyfile(build / "vmlinux", target / "boot" / f"vmlinux-{release}")
    headers = target / "usr" / "src" / f"linux-headers-{release}"
    headers.parent.mkdir(parents=True, exist_ok=True)
    headers.unlink(missing_ok=True)
    headers.symlink_to(os.path.relpath(build, headers.parent.resolve()))
    (target / "release").write_text(release + "\n")


def _is_cached(version: str, target: Path) -> bool:
    # written last, so it stands for the whole
    if not (target / "release").exists():
        return False
    base = KERNELS[version].built_from
    if not base:
        return True
    # of the version that is run without the checks, too; unless that one has not been asked for
    beside = CACHE / "kernels" / base
    if _is_cached(base, beside) and _held(target / "source").get("for") != _cached(base, beside).package_version:
        return False
    return _settings((target / "config").read_text()) == _settings(_fragment(version))


def _cached(version: str, target: Path) -> Kernel:
    return Kernel(version, (target / "release").read_text().strip(), target)


def _known(version: str) -> Source:
    """Where a kernel comes from, if it is one that we have."""
    if version not in KERNELS:
        raise DebianError(f"no kernel {version}; there are: {', '.join(KERNELS)}")
    return KERNELS[version]


def kernel(version: str) -> Kernel:
    """The kernel from the cache; downloads or builds it first where it is missing."""
    built = _known(version).built_from
    target = CACHE / "kernels" / version
    # who builds, does so for minutes: nobody waits for that who wants another kernel
    with locked(target if built else target.parent):
        if not _is_cached(version, target):
            (_build_kernel if built else _unpack_kernel)(version, target)
    return _cached(version, target)


def _root(suite: str) -> Path:
    """A root of another Debian from the cache, to build in; made first where it is missing."""
    target = CACHE / "roots" / suite
    with locked(target.parent):
        if not target.exists():
            setup_host()
            progress(f"making a root of Debian {suite} in {target.relative_to(PROJECT)}")
            with replacement(target) as root:
                packages = ",".join(ROOT_PACKAGES)
                debootstrap(root, suite, "--variant=minbase", f"--include={packages}", f"--keyring={KEYRING}")
                for archive in (root / "var/cache/apt/archives").glob("*.deb"):
                    archive.unlink()
    return target


# Runs a command in a root ($1), in the directory $2, where the directories up to "--" are what they are here.
# What it mounts is gone when it ends.
ENTER = """
set -e
root=$1 directory=$2
shift 2
mount -t proc proc "$root/proc"
while [ "$1" != -- ]; do
	mkdir -p "$root$1"
	mount --rbind "$1" "$root$1"
	shift
done
shift
exec chroot "$root" /bin/sh -c 'cd "$1" && shift && exec "$@"' sh "$directory" "$@"
"""


def make_command(version: str, *arguments: str, shared: Sequence[Path] = ()) -> list[str]:
    """The command that runs make for a kernel's modules, where there is the compiler that the kernel asks for.

    It sees the project, its cache, and the shared directories.
    """
    headers = kernel(version).headers
    make = ["make", "-C", str(headers), *arguments]
    suite = KERNELS[version].root
    if not suite:
        return make
    if os.geteuid():
        raise DebianError(f"only root can build for kernel {version}: it takes a root of Debian {suite}")
    directories = [str(path.resolve()) for path in (PROJECT, CACHE, *shared)]
    enter = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", ENTER, "sh", str(_root(suite))]
    return [*enter, str(headers), *directories, "--", "env", "LC_ALL=C", *make]


# What building and checking against the kernel's own sources takes.
SOURCE_PATHS = (
    "Kbuild", "Kconfig", "Makefile", "arch", "include", "scripts", "tools/arch", "tools/build", "tools/include",
    "tools/lib", "tools/scripts", "tools/testing/selftests", "usr",
)  # fmt: skip

# Where a directory of sources has what _held() tells.
HELD = ".held"

# What building a whole kernel takes.
WHOLE_SOURCE_PATHS = (
    "Documentation/Kconfig", "Kbuild", "Kconfig", "LICENSES", "Makefile", "arch", "block", "certs", "crypto", "drivers",
    "fs", "include", "init", "io_uring", "ipc", "kernel", "lib", "mm", "net", "rust", "samples", "scripts", "security",
    "sound", "tools/Makefile", "tools/arch", "tools/build", "tools/include", "tools/lib", "tools/objtool",
    "tools/scripts", "usr", "virt",
)  # fmt: skip


def _held(source: Path) -> dict[str, str]:
    """What a directory of sources says of itself: its version, the kernel's that it is "for", its paths."""
    try:
        return dict(line.split(": ", 1) for line in (source / HELD).read_text().splitlines())
    except FileNotFoundError:
        return {}


def _has_source(source: Path, wanted: str, paths: Sequence[str]) -> bool:
    held = _held(source)
    return held.get("for") == wanted and all((source / path).exists() for path in paths)


def linux_source(version: str, paths: Sequence[str] = SOURCE_PATHS) -> Path:
    """The sources of the kernel in the cache, as far as asked; downloads them first where they are missing."""
    version = _known(version).built_from or version
    wanted = kernel(version).package_version
    target = CACHE / "linux-source" / version
    with locked(target.parent):
        if not _has_source(target, wanted, paths):
            held = _held(target)
            before = held["paths"].split() if held.get("for") == wanted else []
            _unpack_source(version, wanted, target, list(dict.fromkeys([*before, *paths])))
    return target


def source_offers(index: Index, version: str, wanted: str) -> list[Offer]:
    """The kernel's own version of linux-source, then the others, the next newer one first."""
    package = f"linux-source-{version}"
    there = index.versions(package)
    order = newest_first([*there, wanted])
    at = order.index(wanted)
    nearest = [wanted, *reversed(order[:at]), *order[at + 1 :]]
    # what it depends on is for who builds kernels with it
    return [index.offer(f"{package} {number}", [(package, number)], "") for number in nearest] if there else []


def _unpack_source(version: str, wanted: str, target: Path, paths: Sequence[str]) -> None:
    """Sources of one version, all of them: those of two are never mixed."""
    package = f"linux-source-{version}"
    apt = Apt(*KERNELS[version].suites)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacement(target) as new, tempfile.TemporaryDirectory(dir=target.parent, prefix=".deb-") as directory:
        deb = Path(directory) / "deb"
        what = f"the source of kernel {version} ({wanted})"
        offer = apt.fetch(what, lambda index: source_offers(index, version, wanted), deb)
        (archive,) = deb.glob("usr/src/*.tar.xz")
        new.mkdir()
        members = [f"{package}/{path}" for path in paths]
        progress(f"unpacking {' '.join(paths)}")
        output(["tar", "-C", str(new), "--strip-components=1", "-xf", str(archive), *members])
        held = {"version": offer.what.rpartition(" ")[2], "for": wanted, "paths": " ".join(paths)}
        (new / HELD).write_text("".join(f"{name}: {value}\n" for name, value in held.items()))


USAGE = "usage: kernels.py kernel VERSION | make VERSION ARGUMENT... | source VERSION [PATH]..."


def main() -> int:
    """For make: prints a kernel's release and headers, or where its sources are; or runs make for its modules."""
    try:
        match sys.argv[1:]:
            case ["kernel", version]:
                found = kernel(version)
                print(found.release, found.headers)
            case ["make", version, *arguments]:
                command = make_command(version, *arguments)
                os.execvp(command[0], command)
            case ["source", version, *paths]:
                print(linux_source(version, paths or SOURCE_PATHS))
            case _:
                print(USAGE, file=sys.stderr)
                return 2
    except DebianError as error:
        print(f"kernels.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
