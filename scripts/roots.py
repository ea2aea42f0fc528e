#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Debian 12 roots in the project's cache, and throw-away copies of them to build and try packages in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from checks import BUILD, Tree
from debian import (
    CACHE, HOST_SUITE, KEYRING, PROJECT, DebianError, debootstrap, locked, patiently, progress, replacement, setup_host, sources,
)  # fmt: skip

APT_SETTINGS = """\
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
"""

# What the packages are built and judged with; their versions are what the clean root's package lists know, too.
TOOLS = ("build-essential", "debhelper", "dh-dkms", "dkms", "lintian", "openssl", "pkg-config", "udev")

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}

# Runs a command as in the usual container: /proc, /sys and /dev are there, the network is the machine's, and the
# environment is next to empty.  In the root $1, an overlay with the layers $2, directories of this machine ($3, $5 and
# so on) are, for writing, directories of its own ($4, $6 ...), up to "--".
CONTAINER = """
set -e
root=$1
mount -t overlay -o "$2" overlay "$root"
shift 2
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
while [ "$1" != -- ]; do
	mkdir -p "$root$2"
	mount --rbind "$1" "$root$2"
	shift 2
done
shift
exec chroot "$root" /usr/bin/env -i HOME=/root TERM=dumb PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
"""

# Runs a command in a root ($1), which the words up to "--" are made from: an overlay's layers, or nothing; then the
# directories that are what they are here, for reading.  All mounts and processes are gone when the command ends.
ENTER = """
set -e
root=$1 overlay=$2
shift 2
[ -z "$overlay" ] || mount -t overlay -o "$overlay" overlay "$root"
mount -t proc proc "$root/proc"
for directory; do
	shift
	[ "$directory" != -- ] || break
	mkdir -p "$root$directory"
	mount --bind "$directory" "$root$directory"
	mount -o remount,bind,ro "$root$directory"
done
exec chroot "$root" "$@"
"""


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise DebianError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout.strip()}")
    return done.stdout


def _run(root: Path, *command: str, overlay: str = "", shared: Sequence[Path] = ()) -> str:
    if os.geteuid():
        raise DebianError("only root can enter another root")
    unshare = ["unshare", "--mount", "--pid", "--kill-child", "--propagation", "private"]
    directories = [str(path) for path in shared]
    return _output([*unshare, "/bin/sh", "-c", ENTER, "sh", str(root), overlay, *directories, "--", *command])


class Root:
    """A copy of a Debian root that ends with the program's next use of its name: an overlay in build/roots."""

    def __init__(self, base: Path, name: str) -> None:
        self.base = base
        self.directory = BUILD / "roots" / name
        shutil.rmtree(self.directory, ignore_errors=True)
        for part in ("upper", "work", "root"):
            (self.directory / part).mkdir(parents=True)

    @property
    def written(self) -> Path:
        """Where the host, and the test VM, find what was written."""
        return self.directory / "upper"

    @property
    def layers(self) -> str:
        """The overlay's options."""
        return f"lowerdir={self.base},upperdir={self.directory}/upper,workdir={self.directory}/work"

    def run(self, *command: str, shared: Sequence[Path] = ()) -> str:
        """What a command in it prints; DebianError if it fails."""
        return _run(self.directory / "root", *command, overlay=self.layers, shared=shared)

    def shell(self, script: str, shared: Sequence[Path] = ()) -> str:
        """The same for a script, which ends at its first failure."""
        return self.run("/bin/bash", "-euo", "pipefail", "-c", script, shared=shared)

    def install(self, *packages: str) -> None:
        """Installs packages, by name or by file."""
        _apt_install(self.run, packages)


def _apt_install(run: Callable[..., str], packages: Sequence[str]) -> None:
    command = ["apt-get", "-qq", "-y", "install", *packages]

    def update_and_install() -> None:
        run("apt-get", "-qq", "update")
        run(*command)

    try:
        run(*command)
    except DebianError:
        # the package lists may be older than what the mirror has
        patiently("installing packages in a root", update_and_install)


def contain(base: Path, name: str, *command: str, shared: Mapping[Path, str]) -> subprocess.CompletedProcess[str]:
    """A command as in a container of a root, of which all is forgotten that is not written to a shared directory.

    shared: directories of this machine, and where the command sees them.
    """
    if os.geteuid():
        raise DebianError("only root can enter another root")
    root = Root(base, name)
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    directories = [word for path, at in shared.items() for word in (str(path), at)]
    inside = ["/bin/sh", "-c", CONTAINER, "sh", str(root.directory / "root"), root.layers, *directories, "--", *command]
    try:
        return subprocess.run(
            [*unshare, *inside], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    finally:
        shutil.rmtree(root.directory, ignore_errors=True)


def minimal(suite: str) -> Path:
    """A Debian as debootstrap's minbase leaves it, which is what the usual container is; nothing is added."""

    def make(root: Path) -> None:
        setup_host()
        debootstrap(root, suite, "--variant=minbase", f"--keyring={KEYRING}")
        # a root that is thrown away need not survive a power failure
        (root / "etc/dpkg/dpkg.cfg.d/90memslot").write_text("force-unsafe-io\n")
        for archive in (root / "var/cache/apt/archives").glob("*.deb"):
            archive.unlink()

    return _cached(f"{suite}-minimal", suite, make)


def _make_clean(root: Path) -> None:
    setup_host()
    debootstrap(root, HOST_SUITE, "--variant=minbase")
    (root / "etc/apt/sources.list").write_text(sources((HOST_SUITE, f"{HOST_SUITE}-security")))
    (root / "etc/apt/apt.conf.d/90memslot").write_text(APT_SETTINGS)
    (root / "etc/dpkg/dpkg.cfg.d/90memslot").write_text("force-unsafe-io\n")
    # nothing is started in a root
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    patiently("apt-get update in a root", lambda: _run(root, "apt-get", "-qq", "update"))
    _run(root, "apt-get", "clean")


def _cached(name: str, wanted: str, make: Callable[[Path], None]) -> Path:
    """A root of the cache; made where it is missing, or was made for something else."""
    target = CACHE / "roots" / name
    stamp = target / "etc" / "memslot-root"
    with locked(target.parent):
        if not stamp.exists() or stamp.read_text() != wanted:
            progress(f"making {target.relative_to(PROJECT)}, a root of Debian")
            with replacement(target) as root:
                make(root)
                (root / "etc" / "memslot-root").write_text(wanted)
    return target


def clean() -> Path:
    """Debian 12 with as little as there can be."""
    return _cached("bookworm", APT_SETTINGS, _make_clean)


def tools() -> Path:
    """Debian 12 with TOOLS; the packages they came in are still there."""
    base = clean()

    def make(root: Path) -> None:
        _output(["cp", "-ax", str(base), str(root)])
        _apt_install(lambda *command: _run(root, *command), TOOLS)

    return _cached("bookworm-tools", APT_SETTINGS + " ".join(TOOLS), make)


def build_packages(root: Root) -> list[Path]:
    """The Debian packages of the project, built in a copy of tools()."""
    for name in Tree().names:
        copy = root.written / "build" / "memslot" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, copy)
    root.shell("cd /build/memslot && dpkg-buildpackage --build=binary --no-sign")
    return sorted((root.written / "build").glob("*.deb"))


def main() -> int:
    """Builds the packages, for make."""
    if sys.argv[1:] != ["packages"]:
        print("usage: roots.py packages", file=sys.stderr)
        return 2
    try:
        built = build_packages(Root(tools(), "packages"))
    except DebianError as error:
        print(f"roots.py: {error}", file=sys.stderr)
        return 1
    target = BUILD / "packages"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for package in built:
        print(shutil.copy(package, target))
    return 0


if __name__ == "__main__":
    sys.exit(main())
