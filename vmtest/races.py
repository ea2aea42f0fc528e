# SPDX-License-Identifier: GPL-2.0
"""Which of KCSAN's reports are about the module.

KVM and the rest of the kernel have races of their own, many of them known for years, and on a busy VM there is a
report of one every moment.  A report counts here when

- the module's code is in one of its stacks: it made the access, or called what did;
- what is accessed is a variable of the module;
- KVM's code makes an access at a line that names a field which the module writes, too: where one side only is known,
  the other one may be the module's.

Objects that the module allocates are not told by their address: they are reached through its code, or through fields.
What counts and is no fault of the module's is in KNOWN, with the reason.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kernels import Kernel

MODULE = "memslot"
KVM = re.compile(r"kvm(_amd|_intel)?")

# How lines of KVM name the fields that the module writes: in struct kvm, struct kvm_memslots and struct kvm_memory_slot.
FIELDS = re.compile(
    r"->(?:memslots|__memslots|nr_memslot_pages|nr_memslots_dirty_logging|generation|last_used_slot|hva_tree|gfn_tree"
    r"|id_hash|id_node|hva_node|gfn_node|dirty_bitmap)\b"
    r"|\b(?:slot|memslot|old|new)->(?:base_gfn|npages|flags|userspace_addr|as_id|id|arch)\b"
)

TIME = re.compile(r"\[ *\d+\.\d+\] ")
HEADER = re.compile(r"BUG: KCSAN: ")
END = re.compile(r"={66}$")
ACCESS = re.compile(
    r"(?P<unknown>race at unknown origin, with )?"
    r"(?P<what>(?:read-write|read|write|assert no \w+)(?: \([\w, ]+\))?) "
    r"to 0x(?P<address>[0-9a-f]+) of (?P<bytes>\d+) bytes by (?:task \d+|interrupt) on cpu \d+:$"
)
FRAME = re.compile(r" (?P<function>[\w.]+)\+0x(?P<offset>[0-9a-f]+)/0x(?P<size>[0-9a-f]+)(?: \[(?P<module>\w+)\])?$")
# What an interrupt has interrupted takes no part in what it does
INTERRUPT = re.compile(r"asm_(?:sysvec_\w+|common_interrupt|exc_nmi)")
# Other lines of a report; whatever is between them is somebody else's.
REST = re.compile(r"$| +\||  *\+-> reordered to: |value changed: | bits changed: |Reported by Kernel |CPU: |Hardware name: |Workqueue: ")


@dataclass(frozen=True)
class Frame:
    """A function of a stack, and where in it."""

    function: str
    offset: int
    size: int
    module: str  # "" for the kernel

    def __str__(self) -> str:
        return self.name + (f" [{self.module}]" if self.module else "")

    @property
    def name(self) -> str:
        """Without what the compiler adds to it."""
        return self.function.partition(".")[0]


@dataclass
class Access:
    """One side of a race."""

    what: str  # read, write (marked), ...
    address: int
    unknown: bool  # the other side is not known
    stack: list[Frame] = field(default_factory=list)  # innermost first

    def __str__(self) -> str:
        """As KNOWN has it: write (marked): apply [memslot] < commit_apply [memslot] < ..."""
        return f"{self.what}: " + " < ".join(map(str, self.stack))

    def is_of_module(self) -> bool:
        return any(frame.module == MODULE for frame in self.stack)


def accesses(report: Iterable[str]) -> list[Access]:
    """Both sides of a race, or the one that is known."""
    found: list[Access] = []
    interrupted = False
    for line in report:
        text = TIME.sub("", line, count=1)
        if match := ACCESS.match(text):
            interrupted = False
            found.append(Access(match["what"], int(match["address"], 16), bool(match["unknown"])))
        elif found and not interrupted and (match := FRAME.match(text)):
            frame = Frame(match["function"], int(match["offset"], 16), int(match["size"], 16), match["module"] or "")
            found[-1].stack.append(frame)
            interrupted = bool(INTERRUPT.fullmatch(frame.name))
    return found


@dataclass(frozen=True)
class Known:
    """A race that counts, by what the module does and what KVM does, and is no fault of the module's."""

    why: str
    ours: re.Pattern[str]  # how the two sides begin, see Access
    theirs: re.Pattern[str]
    line: re.Pattern[str]  # in the line of KVM's side

    def matches(self, sides: list[Access], lines_of: Callable[[Access], list[str]]) -> bool:
        pairs = [tuple(sides), tuple(reversed(sides))] if len(sides) == 2 else []
        return any(
            self.ours.match(str(ours))
            and self.theirs.match(str(theirs))
            and (not self.line.pattern or any(map(self.line.search, lines_of(theirs))))
            for ours, theirs in pairs
        )


def _known(why: str, ours: str, theirs: str, line: str = "") -> Known:
    return Known(why, re.compile(ours), re.compile(theirs), re.compile(line))


# Each of them is KVM's without the module, too: there it is an MMU notifier or KVM's own ioctl that does what the module
# does here.
KNOWN = (
    _known(
        "a commit ends with a new generation, which KVM reads without the lock that it is written with; the write is marked",
        r"write \(marked\): \w+ \[memslot\]",
        r"read: \w+ \[kvm(_amd|_intel)?\]",
        r"->generation\b",
    ),
    _known(
        "KVM's own ioctl ends with a new generation, which is written plainly; a query's read of it is marked",
        r"read \(marked\): \w+ \[memslot\]",
        r"write: \w+ \[kvm\]",
        r"->generation\b",
    ),
    _known(
        "the fence is an invalidation by KVM's own functions, which write with mmu_lock held what a page fault reads without"
        " it, and looks at again with it",
        r"(read|write): kvm_mmu_invalidate_(begin|end) \[kvm\] < \w+ \[memslot\]",
        r"read: \w+ \[kvm\]",
    ),
    _known(
        "translations are dropped by KVM's own function, which counts references to their root, while a page fault reads the"
        " count to learn which MMU has made the root: it has a reference itself",
        r"read-write \(marked\): (\w+ \[kvm\] < )*kvm_unmap_gfn_range \[kvm\] < \w+ \[memslot\]",
        r"read: \w+ \[kvm\]",
        r"->root_count\b",
    ),
    _known(
        "vCPUs are kicked by KVM's own functions, which exchange vcpu->mode; the vCPU itself reads and writes it plainly",
        r"[\w-]+ \(marked\): (\w+ \[kvm\] < )+\w+ \[memslot\]",
        r"(read|write): \w+ \[kvm\]",
        r"\bvcpu->mode\b",
    ),
    _known(
        "a commit that waits for a lock sleeps by the kernel's own function, which looks whether its timer, on its own stack, has"
        " fired, while the timer's interrupt says so: whoever sleeps so races so",
        r"read: schedule_hrtimeout_range_clock < (\w+ < )*\w+ \[memslot\]",
        r"write: hrtimer_wakeup < ",
    ),
)

# Who accesses what its caller has given it
LIBRARY = re.compile(r"_*(?:rb|interval_tree|mem(?:cpy|move|set))(?:_\w+)?")


def accessing(side: Access) -> Frame | None:
    """The innermost frame that knows what is accessed."""
    return next((frame for frame in side.stack if frame.module or not LIBRARY.fullmatch(frame.name)), None)


class SourceLines:
    """The lines of KVM's sources that a frame is at, inlined functions' first; none if they cannot be told."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._source = kernel.root / "source"

    @functools.cache
    def _symbols(self, module: str) -> tuple[Path, dict[tuple[str, int], tuple[str, int]]]:
        """A module's file; the section and the address there of each function, by name and size."""
        (path,) = self._kernel.modules.rglob(f"{module.replace('_', '-')}.ko")
        table = subprocess.run(["objdump", "-t", path], check=True, stdout=subprocess.PIPE, text=True).stdout
        pattern = re.compile(r"^(?P<address>[0-9a-f]+) .{6}F (?P<section>\S+)\s+(?P<size>[0-9a-f]+) (?P<name>\S+)$", re.M)
        return path, {
            (match["name"], int(match["size"], 16)): (match["section"], int(match["address"], 16))
            for match in pattern.finditer(table)
        }

    @functools.cache
    def __call__(self, frame: Frame) -> list[str]:
        path, symbols = self._symbols(frame.module)
        candidates = [place for (name, _), place in symbols.items() if name == frame.function]
        if len(candidates) != 1:
            # The kernel's sizes include the gap before the next function
            candidates = [
                place for (name, size), place in symbols.items() if name == frame.function and size <= frame.size < size + 16
            ]
        if len(candidates) != 1:
            return []
        section, address = candidates[0]
        # A stack has return addresses
        command = ["addr2line", "-i", "-e", str(path), "-j", section, hex(address + frame.offset - 1)]
        places = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        return [line for place in places if (line := self._line(place))]

    def _line(self, place: str) -> str:
        match = re.match(r".*?/source/(?P<file>[^:]+):(?P<number>\d+)", place)
        if not match or not (file := self._source / match["file"]).is_file():
            return ""
        lines = file.read_text(errors="replace").splitlines()
        number = int(match["number"])
        return f"{match['file']}:{number}: {lines[number - 1].strip()}" if 0 < number <= len(lines) else ""


class Races:
    """Judges the kernel log of one VM, piece by piece."""

    def __init__(self, source_lines: Callable[[Frame], list[str]]) -> None:
        self._source_lines = source_lines
        self._open: list[str] | None = None  # a report that has not ended yet
        self.image = range(0)  # where the module is
        self.others: Counter[str] = Counter()  # reports that do not count, by their titles
        self.known: Counter[str] = Counter()  # those that are KNOWN, by the reason

    def judge(self, log: Iterable[str]) -> list[str]:
        """The log, without the reports that do not count; one that does is a single item of several lines.

        The beginning of a report whose end has not come is kept for the next time.
        """
        judged: list[str] = []
        for line in log:
            text = TIME.sub("", line, count=1)
            if HEADER.match(text):
                judged += self._close()
                self._open = [line]
            elif self._open is None:
                # The line before the header
                if not END.match(text):
                    judged.append(line)
            elif END.match(text):
                judged += self._close()
            elif ACCESS.match(text) or FRAME.match(text) or REST.match(text):
                self._open.append(line)
            else:
                judged.append(line)
        return judged

    def _close(self) -> list[str]:
        report, self._open = self._open, None
        if not report:
            return []
        sides = accesses(report)
        for known in KNOWN:
            if known.matches(sides, self._lines_of):
                self.known[known.why] += 1
                return []
        if not (reasons := self._reasons(sides)):
            self.others[TIME.sub("", report[0], count=1).removeprefix("BUG: KCSAN: ")] += 1
            return []
        return ["\n".join([*report, *reasons])]

    def _reasons(self, sides: list[Access]) -> list[str]:
        """Why a report of these counts, unless it is known; nothing if it does not."""
        found = []
        if any(side.is_of_module() for side in sides):
            found.append("The module's code takes part.")
        if any(side.address in self.image for side in sides):
            found.append("What is accessed is a variable of the module.")
        for side in sides:
            if any(map(FIELDS.search, lines := self._lines_of(side))):
                found.append(f"The module writes that field, too: {side.what} at " + ", in ".join(lines))
        return found

    def _lines_of(self, side: Access) -> list[str]:
        """Where KVM's code makes an access; nothing if it is not KVM's."""
        frame = accessing(side)
        return self._source_lines(frame) if frame and KVM.fullmatch(frame.module) else []
