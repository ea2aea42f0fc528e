#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Builds Debian 13's QEMU with the patches of contrib/qemu, in the project's cache: `make qemu`.

The source package, and what builds it that this machine's Debian has too old, are unpacked below .cache/patched-qemu/.
The program has KVM and the devices that the tests need, and little else, so that two processors build it in minutes;
it runs with the firmware of this machine's QEMU.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from debian import CACHE, PROJECT, SETUP, Apt, DebianError, Index, Offer, SourceApt, locked, output, progress, release, replacement

PATCHES = PROJECT / "contrib" / "qemu"
# The build directory has it in it: a cache that several checkouts have a link to is one.
HOME = CACHE.resolve() / "patched-qemu"
HEADER = PROJECT / "uapi" / "linux" / "memslot.h"
# Besides what scripts/setup installs in any case.
PACKAGES = ("libglib2.0-dev", "libpixman-1-dev", "ninja-build", "python3-venv")

SUITE = "trixie"
# What the patches are for.
SERIES = r"1:10\.0\..*"
# Where the newest one is looked for that they apply to, too.
NEWEST_SUITES = ("sid", "trixie-backports", "trixie")
# QEMU asks for 1.5.
MESON_SUITE = "bookworm-backports"

DEVICES = (
    "I440FX", "Q35", "VGA_PCI", "VIRTIO_PCI", "VIRTIO_MEM", "VIRTIO_BLK", "TEST_DEVICES", "IVSHMEM_DEVICE", "E1000_PCI",
    "ISA_DEBUG", "EDU",
)  # fmt: skip

CONFIGURE = (
    "--target-list=x86_64-softmmu", "--without-default-features", "--enable-kvm", "--enable-pixman", "--disable-tcg",
    "--disable-docs", "--disable-tools", "--disable-guest-agent", "--disable-user", "--audio-drv-list=",
    "--disable-install-blobs", "--disable-debug-info", "--disable-download", "--without-default-devices",
    "--with-devices-x86_64=minimal", "--enable-trace-backends=log", "-Doptimization=1", "--python=/usr/bin/python3",
)  # fmt: skip


def patches() -> list[Path]:
    """The series, in order."""
    return sorted(PATCHES.glob("0*.patch"))


def apply(source: Path) -> None:
    """Applies the series to QEMU's sources; DebianError, which names the patch, if one does not fit."""
    for patch in patches():
        done = subprocess.run(
            ["patch", "--strip=1", "--fuzz=0", "--no-backup-if-mismatch", "--input", str(patch)],
            cwd=source, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if done.returncode:
            raise DebianError(f"{patch.name} does not apply to {source.name}:\n{done.stdout.strip()}")


def newest() -> tuple[Path, str]:
    """What the series changes, of the newest source of QEMU that Debian hands out, and its version."""
    target = HOME / "newest"
    names = sorted({name for patch in patches() for name in files(patch)})
    stamp = target / ".version"
    wanted = "".join(f"{name}\n" for name in names)
    with locked(HOME):
        if not stamp.exists() or (target / ".names").read_text() != wanted:
            with replacement(target) as new, tempfile.TemporaryDirectory(dir=HOME, prefix=".newest-") as directory:
                version = _newest_source(Path(directory) / "qemu")
                for name in names:
                    if (Path(directory) / "qemu" / name).exists():
                        (new / name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copy(Path(directory) / "qemu" / name, new / name)
                (new / ".names").write_text(wanted)
                (new / ".version").write_text(version)
    return target, stamp.read_text()


def _newest_source(into: Path) -> str:
    """Unpacks it; an index may well name sources that the archive does not have."""
    apt = SourceApt(*NEWEST_SUITES)
    listed: list[Offer] = []
    refused: list[str] = []

    def next_one(index: Index) -> list[Offer]:
        listed[:] = index.source_offers("qemu")
        return [offer for offer in listed if offer.what not in refused][:1]

    while True:
        try:
            return apt.fetch("the newest QEMU's source", next_one, into).what
        except DebianError:
            left = [offer.what for offer in listed if offer.what not in refused]
            if not left:
                raise
            refused.append(left[0])
            if len(left) == 1:
                raise DebianError(f"Debian's archive has the source of no QEMU; its lists name {', '.join(refused)}") from None


def _archive() -> tuple[Path, str]:
    """QEMU's source without our patches, and its version; downloads it where it is missing."""
    target = HOME / "unpatched"
    stamp = target / ".version"
    if not stamp.exists():
        with replacement(target) as new:
            found = SourceApt(SUITE).fetch("QEMU's source", lambda index: index.source_offers("qemu", SERIES), new)
            (new / ".version").write_text(found.what)
    return target, stamp.read_text()


def _meson() -> Path:
    """Where python finds a meson that is new enough."""
    target = HOME / "meson"
    if not target.exists():

        def offers(index: Index) -> list[Offer]:
            return [index.offer(f"meson {version}", [("meson", version)], "") for version in index.versions("meson")]

        with replacement(target) as root:
            Apt(MESON_SUITE if release() == "bookworm" else release()).fetch("meson", offers, root)
    return target / "usr" / "lib" / "python3" / "dist-packages"


def _run(command: list[str], cwd: Path, environment: dict[str, str]) -> None:
    """Runs a step of the build, of which only progress is shown, and the end of what it said if it fails."""
    shown = -1
    with subprocess.Popen(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        said: list[str] = []
        for line in process.stdout:
            said.append(line)
            step = re.match(r"\[(\d+)/(\d+)\]", line)
            if step and (tenth := int(step[1]) * 10 // int(step[2])) > shown:
                shown = tenth
                progress(f"building QEMU: {step[1]} of {step[2]} steps")
    if process.returncode:
        raise DebianError(f"{command[0]} failed with status {process.returncode}:\n{''.join(said[-40:]).strip()}")


def _wanted(version: str) -> str:
    """What tells one program that could be built from another."""
    digest = hashlib.sha256(repr((version, DEVICES, CONFIGURE)).encode())
    for patch in patches():
        digest.update(patch.read_bytes())
    digest.update(HEADER.read_bytes())
    return digest.hexdigest()


def _configured(version: str) -> str:
    """What a build directory depends on that ninja does not see: it has its own path in it, too."""
    return hashlib.sha256(repr((version, DEVICES, CONFIGURE, str(HOME))).encode()).hexdigest()


def _runs_here(program: Path) -> bool:
    """Whether a program that may have been built on another Debian finds its libraries."""
    try:
        return not subprocess.run([program, "--version"], capture_output=True, check=False).returncode
    except OSError:
        return False


def _patch(unpatched: Path, source: Path) -> None:
    """Makes the sources with the series anew.

    Files keep the archive's times, by which ninja knows what it has built: what this series or an earlier one changes
    gets a new time, also where the change is gone.
    """
    touched = HOME / "touched"
    names = set(touched.read_text().split() if touched.exists() else [])
    names.update(name for patch in patches() for name in files(patch))
    touched.write_text("\n".join(sorted(names)))
    shutil.rmtree(source, ignore_errors=True)
    output(["cp", "-a", str(unpatched), str(source)])
    apply(source)
    for name in names:
        if (source / name).exists():
            (source / name).touch()
    devices = "".join(f"CONFIG_{name}=y\n" for name in DEVICES)
    (source / "configs" / "devices" / "x86_64-softmmu" / "minimal.mak").write_text(devices)


def _build() -> Path:
    unpatched, version = _archive()
    source, build, stamp, configured = (HOME / name for name in ("source", "build", "stamp", "configured"))
    program = build / "qemu-system-x86_64"
    wanted = _wanted(version)
    # It may be at another path than it was built at, as in a container: it needs nothing that is beside it
    if stamp.exists() and stamp.read_text() == wanted and _runs_here(program):
        return program
    if subprocess.run([str(SETUP), *PACKAGES], check=False).returncode:
        raise DebianError("packages that build QEMU are missing, see above")
    stamp.unlink(missing_ok=True)
    include = HOME / "include" / "linux"
    include.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(HEADER, include / HEADER.name)
    _patch(unpatched, source)
    environment = {**os.environ, "PYTHONPATH": str(_meson())}
    if not configured.exists() or configured.read_text() != _configured(version):
        progress(f"configuring {version} with {len(patches())} patches; building it takes about six minutes, once")
        configured.unlink(missing_ok=True)
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir()
        _run([str(source / "configure"), *CONFIGURE, f"--extra-cflags=-I{include.parent}"], build, environment)
        configured.write_text(_configured(version))
    _run(["ninja", f"-j{len(os.sched_getaffinity(0))}", program.name], build, environment)
    stamp.write_text(wanted)
    return program


def files(patch: Path) -> list[str]:
    """The files that a patch changes or makes."""
    return re.findall(r"^\+\+\+ b/(\S+)", patch.read_text(), re.M)


def patched_qemu() -> list[str]:
    """How it is started, with the firmware of the machine's own QEMU, after building it if it is not in the cache."""
    with locked(HOME):
        return [str(_build()), "-L", "/usr/share/seabios", "-L", "/usr/share/qemu"]


def main() -> int:
    """For make: builds it, and says where it is."""
    if sys.argv[1:]:
        print("usage: patched_qemu.py", file=sys.stderr)
        return 2
    try:
        print(*patched_qemu())
    except DebianError as error:
        print(f"patched_qemu.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
