#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Debian kernels for the test VM, unpacked into the project's cache.

Nothing is installed: the packages are downloaded and unpacked below
.cache/kernels/<version>/, and the machine's own kernel and /boot stay as they are.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PROJECT = Path(__file__).resolve().parents[2]
CACHE = PROJECT / ".cache"
SETUP = Path(__file__).resolve().parent / "setup"


class KernelError(Exception):
    """A kernel cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Source:
    """Where a kernel comes from: options for apt-get and apt-cache."""

    apt_options: tuple[str, ...] = ()


# Every kernel that the VM can boot, oldest first; versions.mk says which ones the module supports.
KERNELS: dict[str, Source] = {
    "6.1": Source(),
}


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


def progress(text: str) -> None:
    print(f"memslot: {text}", file=sys.stderr, flush=True)


def setup_host() -> None:
    """Installs the host packages that are missing."""
    if subprocess.run([str(SETUP)], check=False).returncode:
        raise KernelError("host packages are missing, see above")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _output(command: Sequence[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise KernelError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr.strip()}")
    return done.stdout


class _Apt:
    """Looks packages up and downloads them."""

    def __init__(self, source: Source) -> None:
        self._options = source.apt_options

    def _run(self, tool: str, *arguments: str, cwd: Path | None = None) -> str:
        return _output([tool, *self._options, *arguments], cwd)

    def with_update(self, action: Callable[[], T]) -> T:
        """What the action returns; if it fails, the package lists may be missing or too old."""
        try:
            return action()
        except KernelError:
            progress("apt-get update")
            self._run("apt-get", "-qq", "update")
            return action()

    def records(self, package: str) -> list[dict[str, str]]:
        """The known versions of a package, best first."""
        text = self._run("apt-cache", "show", package)
        return [dict(re.findall(r"^([\w-]+): (.*)$", record, re.M)) for record in text.split("\n\n") if record.strip()]

    def download(self, names: Sequence[str], into: Path) -> list[Path]:
        # Else apt warns that its own user may not write here.
        self._run("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *names, cwd=into)
        return sorted(into.glob("*.deb"))


def _kernel_packages(apt: _Apt, version: str) -> tuple[str, list[str]]:
    """The kernel release, and the packages (name=version) it is made of."""
    for record in apt.records("linux-image-amd64"):
        match = re.search(rf"linux-image-({re.escape(version)}[.-][^ ]*) \(= ([^)]*)\)", record.get("Depends", ""))
        if match:
            break
    else:
        raise KernelError(f"apt knows no linux-image-amd64 of version {version}; is this Debian 12?")
    release, package_version = match.groups()

    packages = [f"linux-image-{release}={package_version}", f"linux-headers-{release}={package_version}"]
    for record in apt.records(f"linux-headers-{release}"):
        if record["Version"] == package_version:
            names = re.findall(r"linux-(?:headers|kbuild|compiler)-[^ ,]+", record["Depends"])
            packages += [f"{name}={package_version}" for name in names]
    return release, packages


def _rewrite_paths(root: Path) -> None:
    """Makes the headers find each other wherever they were unpacked."""
    for makefile in root.glob("usr/src/linux-headers-*/Makefile"):
        text = makefile.read_text()
        makefile.write_text(
            re.sub(r"^include /usr/src/", "include $(dir $(lastword $(MAKEFILE_LIST)))../", text, flags=re.M)
        )
    for link in (*root.glob("usr/src/linux-*/*"), *root.glob("lib/modules/*/*")):
        if link.is_symlink() and (to := os.readlink(link)).startswith("/usr/"):
            link.unlink()
            link.symlink_to(os.path.relpath(root / to[1:], link.parent))


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
        raise KernelError(f"{boot}/vmlinuz-{release} has an unknown compression ({payload[:4].hex()})")
    with open(boot / f"vmlinux-{release}", "wb") as vmlinux:
        # the last four bytes are the size, which the decompressors do not know
        subprocess.run(command, input=payload[:-4], stdout=vmlinux, check=True)


def _unpack_kernel(version: str, target: Path) -> None:
    apt = _Apt(KERNELS[version])
    progress(f"downloading Debian's kernel {version} into {target.relative_to(PROJECT)}")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{version}-") as directory:
        temporary = Path(directory)

        def fetch() -> tuple[str, list[Path]]:
            release, packages = _kernel_packages(apt, version)
            return release, apt.download(packages, temporary)

        release, debs = apt.with_update(fetch)
        root = temporary / "root"
        for deb in debs:
            _output(["dpkg", "-x", str(deb), str(root)])
        _rewrite_paths(root)
        _decompress_kernel(root / "boot", release)
        _output(["/sbin/depmod", "-b", str(root), release])
        (root / "release").write_text(release + "\n")
        root.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        root.rename(target)


def kernel(version: str) -> Kernel:
    """The kernel from the cache; downloads it first where it is missing."""
    if version not in KERNELS:
        raise KernelError(f"no kernel {version}; there are: {', '.join(KERNELS)}")
    target = CACHE / "kernels" / version
    with _locked(target.parent):
        # written last, so it stands for the whole
        if not (target / "release").exists():
            _unpack_kernel(version, target)
    return Kernel(version, (target / "release").read_text().strip(), target)


# What building and checking against the kernel's own sources takes.
SOURCE_PATHS = (
    "Kbuild", "Kconfig", "Makefile", "arch", "include", "scripts", "tools/arch", "tools/build", "tools/include",
    "tools/lib", "tools/scripts", "tools/testing/selftests", "usr",
)  # fmt: skip


def linux_source(version: str, paths: Sequence[str] = SOURCE_PATHS) -> Path:
    """The kernel's sources from the cache, as far as asked; downloads them first where they are missing."""
    target = CACHE / "linux-source" / version
    with _locked(target.parent):
        missing = [path for path in paths if not (target / path).exists()]
        if missing:
            _unpack_source(version, target, missing)
    return target


def _unpack_source(version: str, target: Path, paths: Sequence[str]) -> None:
    package = f"linux-source-{version}"
    apt = _Apt(KERNELS[version])
    progress(f"downloading {package}, unpacking {' '.join(paths)}")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{version}-") as directory:
        temporary = Path(directory)
        (deb,) = apt.with_update(lambda: apt.download([package], temporary))
        _output(["dpkg", "-x", str(deb), str(temporary / "deb")])
        (archive,) = (temporary / "deb").glob("usr/src/*.tar.xz")
        members = [f"{package}/{path}" for path in paths]
        _output(["tar", "-C", str(temporary), "-xf", str(archive), *members])
        for path in paths:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / package / path).rename(target / path)


def main() -> int:
    """Prints, for make: the release and the headers of a kernel, or the directory of its sources."""
    try:
        match sys.argv[1:]:
            case ["kernel", version]:
                found = kernel(version)
                print(found.release, found.headers)
            case ["source", version, *paths]:
                print(linux_source(version, paths or SOURCE_PATHS))
            case _:
                print("usage: kernels.py kernel VERSION | source VERSION [PATH]...", file=sys.stderr)
                return 2
    except KernelError as error:
        print(f"kernels.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
