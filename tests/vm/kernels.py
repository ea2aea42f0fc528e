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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from debian import CACHE, KEYRING, PROJECT, Apt, DebianError, debootstrap, locked, output, progress, setup_host


@dataclass(frozen=True)
class Source:
    """Where a kernel comes from, and what it is built for."""

    suite: str | None = None  # None: wherever the machine's own apt gets its packages
    root: str | None = None  # the Debian whose compiler and libraries its headers need; None: this machine's
    # Built here: from another one's sources, with a fragment of a configuration that is beside this file.
    built_from: str | None = None
    config: str = ""


# Every kernel that the VM can boot, oldest first; versions.mk says which ones the module supports.
KERNELS: dict[str, Source] = {
    "6.1": Source(),
    "6.12": Source("bookworm-backports"),
    "7.3": Source("trixie-backports", root="trixie"),
    "6.1-debug": Source(built_from="6.1", config="debug.config"),
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


# The packages that a kernel and its headers are made of, among what they depend on.
PARTS = re.compile(r"linux-(?:base|binary|modules|headers|kbuild|compiler)-[^ ,]+")


def _kernel_packages(apt: Apt, version: str) -> tuple[str, list[str]]:
    """The kernel release, and the packages (name=version) it is made of."""
    for record in apt.records("linux-image-amd64"):
        match = re.search(rf"linux-image-({re.escape(version)}[.-][^ ]*) \(= ([^)]*)\)", record.get("Depends", ""))
        if match:
            break
    else:
        raise DebianError(f"apt knows no linux-image-amd64 of version {version}; is this Debian 12?")
    release, package_version = match.groups()

    # Since 7.x, what used to be one package is several.
    names = [f"linux-image-{release}", f"linux-headers-{release}"]
    for name in names:
        for record in apt.records(name):
            if record["Version"] == package_version:
                needed = re.findall(PARTS, record.get("Depends", ""))
                names += [other for other in needed if other not in names]
    packages = [f"{name}={package_version}" for name in names]
    return release, packages


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
    apt = Apt(KERNELS[version].suite)
    progress(f"downloading Debian's kernel {version} into {target.relative_to(PROJECT)}")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{version}-") as directory:
        root = Path(directory) / "root"

        def fetch() -> str:
            release, packages = _kernel_packages(apt, version)
            apt.unpack(packages, root)
            return release

        release = apt.with_update(fetch)
        _merge_usr(root, release)
        _rewrite_paths(root)
        _decompress_kernel(root / "boot", release)
        output(["/sbin/depmod", "-b", str(root), release])
        (root / "release").write_text(release + "\n")
        root.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        root.rename(target)


def _fragment(version: str) -> str:
    return (Path(__file__).resolve().parent / KERNELS[version].config).read_text()


def _build_kernel(version: str, target: Path) -> None:
    """Builds a kernel of our own configuration; takes minutes, and goes on where it was interrupted."""
    base, fragment = KERNELS[version].built_from, _fragment(version)
    assert base
    setup_host()
    source = target.resolve() / "source"
    if missing := [path for path in WHOLE_SOURCE_PATHS if not (source / path).exists()]:
        _unpack_source(base, source, missing)
    progress(f"building kernel {version} in {target.relative_to(PROJECT)}: this takes about ten minutes, once")
    build = target.resolve() / "build"
    build.mkdir(parents=True, exist_ok=True)
    (target / "release").unlink(missing_ok=True)
    (target / "config").write_text(fragment)
    make = ["make", "--silent", "-C", str(source), f"O={build}", f"-j{len(os.sched_getaffinity(0))}"]
    # The entry that QEMU jumps to, and memcmp() that it calls, run before KASAN has its shadow.
    make += ["KASAN_SANITIZE_enlighten.o=n", "KASAN_SANITIZE_string.o=n"]

    output([*make, f"KCONFIG_ALLCONFIG={target.resolve() / 'config'}", "allnoconfig"])
    got = (build / ".config").read_text().splitlines()
    lost = [line for line in fragment.splitlines() if line.startswith("CONFIG_") and line not in got]
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
    return not KERNELS[version].built_from or (target / "config").read_text() == _fragment(version)


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
    return Kernel(version, (target / "release").read_text().strip(), target)


def _root(suite: str) -> Path:
    """A root of another Debian from the cache, to build in; made first where it is missing."""
    target = CACHE / "roots" / suite
    with locked(target.parent):
        if not target.exists():
            setup_host()
            progress(f"making a root of Debian {suite} in {target.relative_to(PROJECT)}")
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{suite}-") as directory:
                root = Path(directory) / "root"
                packages = ",".join(ROOT_PACKAGES)
                debootstrap(root, suite, "--variant=minbase", f"--include={packages}", f"--keyring={KEYRING}")
                for archive in (root / "var/cache/apt/archives").glob("*.deb"):
                    archive.unlink()
                root.rename(target)
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

# What building a whole kernel takes.
WHOLE_SOURCE_PATHS = (
    "Documentation/Kconfig", "Kbuild", "Kconfig", "LICENSES", "Makefile", "arch", "block", "certs", "crypto", "drivers",
    "fs", "include", "init", "io_uring", "ipc", "kernel", "lib", "mm", "net", "rust", "samples", "scripts", "security",
    "sound", "tools/Makefile", "tools/arch", "tools/build", "tools/include", "tools/lib", "tools/objtool",
    "tools/scripts", "usr", "virt",
)  # fmt: skip


def linux_source(version: str, paths: Sequence[str] = SOURCE_PATHS) -> Path:
    """The kernel's sources from the cache, as far as asked; downloads them first where they are missing."""
    version = _known(version).built_from or version
    target = CACHE / "linux-source" / version
    with locked(target.parent):
        missing = [path for path in paths if not (target / path).exists()]
        if missing:
            _unpack_source(version, target, missing)
    return target


def _unpack_source(version: str, target: Path, paths: Sequence[str]) -> None:
    package = f"linux-source-{version}"
    target.mkdir(parents=True, exist_ok=True)
    apt = Apt(KERNELS[version].suite)
    progress(f"downloading {package}, unpacking {' '.join(paths)}")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{version}-") as directory:
        temporary = Path(directory)
        apt.with_update(lambda: apt.unpack([package], temporary / "deb"))
        (archive,) = (temporary / "deb").glob("usr/src/*.tar.xz")
        members = [f"{package}/{path}" for path in paths]
        output(["tar", "-C", str(temporary), "-xf", str(archive), *members])
        for path in paths:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / package / path).rename(target / path)


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
