# SPDX-License-Identifier: GPL-2.0
"""The QEMU that the test VM runs in where the machine cannot virtualize; some of its machine code is changed.

Debian 12's own QEMU 7.2 is not it: its TCG now and then runs a stale translation of code that another processor has
patched.  So it is the newest that Debian builds for this machine's Debian, unpacked below .cache/.  That one has races
between the threads of its processors, which make emulated SVM unusable with more than one of them.  Building a QEMU
of our own would take everybody half an hour and many packages; CHANGES are a few instructions in the copy below
.cache/, and the installed QEMU stays as it is.

A QEMU that is not made of these bytes (Debian's next one) is left as it is, and its processors run by turns, in one
thread.  There they do not race with each other, which is nearly all of it, and it is slower.  What remains is a rare race
with QEMU's main loop, whose timers and devices set interrupts of a processor from a thread of their own: an interrupt may
still be lost, and a vCPU then sleeps for seconds.  A line says so, until CHANGES are written for that QEMU.  A QEMU that is
in the cache already stays.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from debian import CACHE, Apt, DebianError, Index, Offer, locked, output, progress, release, replacement

PACKAGE = "qemu-system-x86"
# What of its dependencies comes with it; the others are libraries, which the machine has for a QEMU of its own.
PARTS = r"qemu-system-(?:common|data)|seabios"


@dataclass(frozen=True)
class Change:
    """Of the first bytes of some that a function has exactly once."""

    function: str
    before: str  # hexadecimal, like after; a byte of "..", part of an address, may be any
    after: str

    def place(self, code: bytes) -> int | None:
        """Where in the function's code the change belongs."""
        pairs = re.findall("..", self.before)
        pattern = b"".join(b"." if pair == ".." else re.escape(bytes.fromhex(pair)) for pair in pairs)
        found = list(re.finditer(pattern, code, re.DOTALL))
        return found[0].start() if len(found) == 1 else None


# By the QEMU that they are for: bookworm-backports' and trixie-backports'.
CHANGES = {
    "10.0": (
        # When a processor loads x87 state (XRSTOR, which KVM does all the time), this clears a bit of the *first*
        # processor's flags, without a lock.  Those flags say, too, whether that one is in a guest.  About every second run
        # of eight vCPUs, without memslot, ended with a vCPU that had its host's registers, or with a thread's stack
        # overwritten.  The bit is about how MS-DOS learns of floating point errors.  Now: ret.
        Change(
            "cpu_clear_ignne",
            "4883ec08488b3d........4c8d05........b91f000000488d15........488d35........e8........81a0742c00007fffffff",
            "c3",
        ),
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
        Change(
            "cpu_reset_interrupt",
            "554889fd5389f3f7d34883ec08e8........84c0741a219dd0000000",
            "f7d6f021b7d0000000c3",
        ),
    ),
    # All of a processor's pending interrupts are set and taken back without races here (the changes that change nothing
    # see to that); what loads x87 state is as it was.  Now: ret.
    "11.1": (
        Change("cpu_set_interrupt", "f009b7d0000000", "f009b7d0000000"),
        Change("cpu_reset_interrupt", "f7d6f021b7d0000000", "f7d6f021b7d0000000"),
        Change("helper_vmrun", "be000100004889efe8", "be000100004889efe8"),
        Change(
            "cpu_clear_ignne",
            "4883ec08488b3d........4c8d05........b91f000000488d15........488d35........e8........81a0a44100007fffffff",
            "c3",
        ),
    ),
}


@dataclass(frozen=True)
class Emulator:
    """An unpacked QEMU."""

    root: Path
    changed: bool = True  # it has CHANGES

    @property
    def accelerator(self) -> str:
        """How it runs several processors."""
        return "tcg,thread=multi" if self.changed else "tcg,thread=single"

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


class OtherBytes(DebianError):
    """A QEMU is not the one that CHANGES are for."""


def _place_in_file(program: Path, function: str) -> tuple[int, int]:
    """Where a program's file has a function that its modules may call, and its size."""
    lines = output(["readelf", "--wide", "--dyn-syms", str(program)]).splitlines()
    found = [symbol for symbol in (line.split() for line in lines) if symbol[7:] == [function]]
    if len(found) != 1:
        raise OtherBytes(f"{program} has no {function}")
    address, size = int(found[0][1], 16), int(found[0][2])
    for line in output(["readelf", "--wide", "--segments", str(program)]).splitlines():
        match line.split():
            case ["LOAD", offset, start, _, length, *_] if int(start, 16) <= address < int(start, 16) + int(length, 16):
                return int(offset, 16) + address - int(start, 16), size
    raise OtherBytes(f"{program} has no segment with {function}")


def _places(program: Path, changes: Sequence[Change]) -> list[tuple[int, bytes]]:
    """What is to be written where in QEMU's file; OtherBytes if it is not the one that the changes are for."""
    found = []
    with open(program, "rb") as file:
        for change in changes:
            offset, size = _place_in_file(program, change.function)
            file.seek(offset)
            place = change.place(file.read(size))
            if place is None:
                raise OtherBytes(f"{program} has another {change.function} than this was written for")
            found.append((offset + place, bytes.fromhex(change.after)))
    return found


def take_bugs_out(program: Path) -> None:
    """Makes the changes in QEMU's file; OtherBytes, and none of them, if there are none for it."""
    others = []
    for version, changes in CHANGES.items():
        try:
            places = _places(program, changes)
        except OtherBytes as error:
            others.append(f"not QEMU {version}: {error}")
            continue
        with open(program, "r+b") as file:
            for offset, after in places:
                file.seek(offset)
                file.write(after)
        return
    raise OtherBytes("; ".join(others))


def offers(index: Index) -> list[Offer]:
    """The QEMUs that the archive knows, newest first; some of them in parts only."""
    return [index.offer(f"{PACKAGE} {version}", [(PACKAGE, version)], PARTS) for version in index.versions(PACKAGE)]


def _unpack(root: Path) -> None:
    Apt(f"{release()}-backports", release()).fetch("the test VM's QEMU", offers, root)


@functools.cache
def _warn(root: Path) -> None:
    progress(
        f"{root.name} has races that vmtest/emulator.py cannot take out of its version: "
        "the test VM's processors run by turns, which is slower, and now and then it may still lose an interrupt"
    )


def emulator() -> Emulator:
    """The emulator, after downloading it if it is not in the cache."""
    target = CACHE / f"qemu-{release()}-{hashlib.sha256(repr(CHANGES).encode()).hexdigest()[:8]}"
    unchanged = target.with_name(f"{target.name}-unchanged")
    with locked(CACHE):
        if not target.exists() and not unchanged.exists():
            try:
                with replacement(target) as root:
                    _unpack(root)
                    try:
                        take_bugs_out(Emulator(root).program)
                    except OtherBytes:
                        root.rename(unchanged)
                        raise
            except OtherBytes as error:
                progress(str(error))
    if target.exists():
        return Emulator(target)
    _warn(unchanged)
    return Emulator(unchanged, changed=False)
