# SPDX-License-Identifier: GPL-2.0
"""The QEMU that the test VM runs in where the machine cannot virtualize.

Debian 12's own QEMU 7.2 is not it: its TCG now and then runs a stale translation of code that another processor has
patched.  So it is the newest that Debian builds for Debian 12, unpacked below .cache/qemu/, with two bugs taken out of
it that make emulated SVM unusable with more than one processor.  Both are in 7.2 and in 10.0.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from debian import CACHE, HOST_SUITE, PROJECT, Apt, DebianError, locked, output, progress

SUITE = f"{HOST_SUITE}-backports"
PACKAGES = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")


@dataclass(frozen=True)
class Change:
    """Of the first bytes of a function; both are of the same length, or nothing is before."""

    function: str
    before: bytes
    after: bytes


CHANGES = (
    # When a processor loads x87 state (XRSTOR, which KVM does all the time), this clears a bit of the *first*
    # processor's flags, without a lock.  Those flags say, too, whether that one is in a guest.  About every second run
    # of eight vCPUs, without memslot, ended with a vCPU that had its host's registers, or with a thread's stack
    # overwritten.  The bit is about how MS-DOS learns of floating point errors.  Now: ret.
    Change("cpu_clear_ignne", b"", b"\xc3"),
    # A guest's write to CR8, by a processor that handles it for KVM, gets here without the lock that is asserted to be
    # held (OVMF does it).  Now: the jump over the failure is always taken.
    Change("tcg_handle_interrupt", b"\x84\xc0\x75", b"\x84\xc0\xeb"),
)


@dataclass(frozen=True)
class Emulator:
    """An unpacked QEMU."""

    root: Path

    @property
    def program(self) -> Path:
        return self.root / "usr" / "bin" / "qemu-system-x86_64"

    @property
    def command(self) -> list[str]:
        data = [self.root / "usr" / "share" / directory for directory in ("qemu", "seabios")]
        return [str(self.program), *(word for path in data for word in ("-L", str(path)))]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "QEMU_MODULE_DIR": str(self.root / "usr/lib/x86_64-linux-gnu/qemu")}


def _offset_in_file(program: Path, function: str) -> int:
    """Where a program's file has a function that its modules may call."""
    symbols = (line.split() for line in output(["readelf", "--wide", "--dyn-syms", str(program)]).splitlines())
    (address,) = (int(symbol[1], 16) for symbol in symbols if symbol[7:] == [function])
    for line in output(["readelf", "--wide", "--segments", str(program)]).splitlines():
        match line.split():
            case ["LOAD", offset, start, _, size, *_] if int(start, 16) <= address < int(start, 16) + int(size, 16):
                return int(offset, 16) + address - int(start, 16)
    raise DebianError(f"{program} has no segment with {function}")


def _take_bugs_out(program: Path) -> None:
    with open(program, "r+b") as file:
        for change in CHANGES:
            offset = _offset_in_file(program, change.function)
            file.seek(offset)
            at = file.read(32).find(change.before)
            if at < 0:
                raise DebianError(f"{program} has another {change.function} than this was written for")
            file.seek(offset + at)
            file.write(change.after)


def emulator() -> Emulator:
    """The emulator, after downloading it if it is not in the cache."""
    target = CACHE / "qemu"
    with locked(CACHE):
        if not target.exists():
            progress(f"downloading QEMU of {SUITE} into {target.relative_to(PROJECT)}")
            apt = Apt(SUITE)
            with tempfile.TemporaryDirectory(dir=CACHE, prefix=".qemu-") as directory:
                root = Path(directory) / "root"
                apt.with_update(lambda: apt.unpack(PACKAGES, root))
                _take_bugs_out(Emulator(root).program)
                root.rename(target)
    return Emulator(target)
