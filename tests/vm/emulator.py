# SPDX-License-Identifier: GPL-2.0
"""The QEMU that the test VM runs in where the machine cannot virtualize.

Debian 12's own QEMU 7.2 is not it: its TCG now and then runs a stale translation of code that another processor has
patched.  So it is the newest that Debian builds for Debian 12, unpacked below .cache/, with bugs taken out of it that
make emulated SVM unusable with more than one processor.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from debian import CACHE, HOST_SUITE, PROJECT, Apt, DebianError, locked, output, progress

SUITE = f"{HOST_SUITE}-backports"
PACKAGES = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")


@dataclass(frozen=True)
class Change:
    """Of bytes that a function has exactly once, or of its first ones if nothing is before."""

    function: str
    before: str  # hexadecimal, like after; as long, unless empty
    after: str


CHANGES = (
    # When a processor loads x87 state (XRSTOR, which KVM does all the time), this clears a bit of the *first*
    # processor's flags, without a lock.  Those flags say, too, whether that one is in a guest.  About every second run
    # of eight vCPUs, without memslot, ended with a vCPU that had its host's registers, or with a thread's stack
    # overwritten.  The bit is about how MS-DOS learns of floating point errors.  Now: ret.
    Change("cpu_clear_ignne", "", "c3"),
    # A processor's pending interrupts are bits of one word, which other processors and timers set, with QEMU's lock
    # held; it changes the virtual interrupt's itself on every VMRUN and VMEXIT, without the lock.  What came in between
    # was lost: a processor that then halted, in a guest of its own, slept for seconds, with the interrupt in its APIC
    # ("info lapic"), and so did who waited for it.  Once in some thirty boots of a QEMU with four vCPUs.  (QEMU made all
    # of these atomic later, in 2025.)
    # Now: lock orb/andb of the word's second byte, where the virtual interrupt is.
    Change("helper_vmrun", "818b10d5ffff00010000", "f0808b11d5ffff016690"),
    Change("do_vmexit", "81a310d5fffffffeffff", "f080a311d5fffffe6690"),
    # And lock or/and of the word for the others.  This asserts, too, that QEMU's lock is held, which it is not when a
    # processor handles CR8 for KVM (OVMF writes it): the jump over the failure is always taken.
    Change("tcg_handle_interrupt", "84c07524", "84c0eb23"),
    Change("tcg_handle_interrupt", "0f1f0009abd0000000", "6690f009abd0000000"),
    # not %esi; lock and %esi,0xd0(%rdi); ret
    Change("cpu_reset_interrupt", "", "f7d6f021b7d0000000c3"),
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


def _place_in_file(program: Path, function: str) -> tuple[int, int]:
    """Where a program's file has a function that its modules may call, and its size."""
    symbols = (line.split() for line in output(["readelf", "--wide", "--dyn-syms", str(program)]).splitlines())
    ((address, size),) = ((int(symbol[1], 16), int(symbol[2])) for symbol in symbols if symbol[7:] == [function])
    for line in output(["readelf", "--wide", "--segments", str(program)]).splitlines():
        match line.split():
            case ["LOAD", offset, start, _, length, *_] if int(start, 16) <= address < int(start, 16) + int(length, 16):
                return int(offset, 16) + address - int(start, 16), size
    raise DebianError(f"{program} has no segment with {function}")


def take_bugs_out(program: Path) -> None:
    """Makes the changes in QEMU's file; DebianError, and none of them, if it is not the one that they are for."""
    changed = []
    with open(program, "r+b") as file:
        for change in CHANGES:
            before, after = bytes.fromhex(change.before), bytes.fromhex(change.after)
            offset, size = _place_in_file(program, change.function)
            file.seek(offset)
            code = file.read(size)
            if len(after) > size or (before and code.count(before) != 1):
                raise DebianError(f"{program} has another {change.function} than this was written for")
            changed.append((offset + code.find(before), after))
        for offset, after in changed:
            file.seek(offset)
            file.write(after)


def emulator() -> Emulator:
    """The emulator, after downloading it if it is not in the cache."""
    target = CACHE / f"qemu-{hashlib.sha256(repr(CHANGES).encode()).hexdigest()[:8]}"
    with locked(CACHE):
        if not target.exists():
            progress(f"downloading QEMU of {SUITE} into {target.relative_to(PROJECT)}")
            apt = Apt(SUITE)
            with tempfile.TemporaryDirectory(dir=CACHE, prefix=".qemu-") as directory:
                root = Path(directory) / "root"
                apt.with_update(lambda: apt.unpack(PACKAGES, root))
                take_bugs_out(Emulator(root).program)
                root.rename(target)
    return Emulator(target)
