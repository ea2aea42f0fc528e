#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Boots a QEMU once, and counts what it does to memslots; runs in the test VM, for boot_commits.py.

The same is counted in the same way for each QEMU, by the kernel's tracing: calls (KVM_SET_USER_MEMORY_REGION), commits
of /dev/memslot and how many of them were fenced, grace periods that either waited for, milliseconds in either, signals
with which vCPUs are kicked, and how often KVM_RUN ended with EINTR.  A QEMU that has the patches of contrib/qemu says
itself how long its memory transactions took, with what was spent on keeping vCPUs out of KVM; for any other one that
is what the calls and commits took.

Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "system"))

from boots import boot  # noqa: E402
from qemu_process import Json  # noqa: E402

TRACING = Path("/sys/kernel/tracing")
GROUP = "memslot_boots"
# KVM_SET_USER_MEMORY_REGION and KVM_SET_USER_MEMORY_REGION2
CALLS = ("0x4020ae46", "0x40a0ae49")
PROBES = (
    f"p:{GROUP}/call kvm:kvm_vm_ioctl request=%si:u32",
    f"r:{GROUP}/call_end kvm:kvm_vm_ioctl",
    f"p:{GROUP}/grace synchronize_srcu_expedited",
    f"r:{GROUP}/eintr kvm:kvm_vcpu_ioctl ret=$retval:s64",
)
FILTERS = {
    f"{GROUP}/call": " || ".join(f"request == {number}" for number in CALLS),
    f"{GROUP}/call_end": "",
    f"{GROUP}/grace": "",
    f"{GROUP}/eintr": "ret == -4",
    "memslot/memslot_commit_start": "",
    "memslot/memslot_commit_end": "",
    "syscalls/sys_enter_tgkill": "sig == 10",  # SIGUSR1
}
EVENT = re.compile(r"-(\d+) +\[\d+\].*? (\d+)\.(\d{6}): (\w+?)(?:\(|: )(.*)")


@contextmanager
def tracing() -> Iterator[Path]:
    """A trace buffer with these events, which is gone afterwards: as long as it is there, no module can be unloaded."""
    probes, buffer = TRACING / "kprobe_events", TRACING / "instances" / GROUP
    probes.write_text("".join(f"{probe}\n" for probe in PROBES))
    try:
        buffer.mkdir()
        (buffer / "tracing_on").write_text("0")
        (buffer / "buffer_size_kb").write_text("16384")
        for event, condition in FILTERS.items():
            if condition:
                (buffer / "events" / event / "filter").write_text(condition)
            (buffer / "events" / event / "enable").write_text("1")
        yield buffer
    finally:
        if buffer.exists():
            (buffer / "events" / "enable").write_text("0")
            buffer.rmdir()
        # Opened for writing from the start, the file forgets all probes; there are no others in the test VM
        probes.write_text("")


def traced(buffer: Path) -> str:
    """What the buffer has; ends this program if it has lost anything."""
    stats = "".join(file.read_text() for file in buffer.glob("per_cpu/cpu*/stats"))
    if lost := sum(map(int, re.findall(r"(?:overrun|dropped events): (\d+)", stats))):
        raise SystemExit(f"boot_in_vm: the trace buffer has lost {lost} events")
    return (buffer / "trace").read_text()


def counted(trace: str) -> Json:
    """What the events amount to."""
    found: Counter[str] = Counter(dict.fromkeys(("calls", "commits", "fenced", "parked", "grace_periods", "kicks", "eintr"), 0))
    since: dict[str, int] = {}  # microseconds at which a thread has entered a call, or begun a commit
    calling: set[str] = set()
    inside = 0
    for thread, seconds, fraction, event, rest in EVENT.findall(trace):
        now = int(seconds + fraction)
        if event == "call":
            found["calls"] += 1
            since[thread] = now
            calling.add(thread)
        elif event == "call_end" and thread in calling:
            inside += now - since.pop(thread)
            calling.remove(thread)
        elif event == "memslot_commit_start":
            found["commits"] += 1
            since[thread] = now
        elif event == "memslot_commit_end":
            inside += now - since.pop(thread)
            fields = dict(word.split("=", 1) for word in rest.split() if "=" in word)
            found["grace_periods"] += int(fields["grace_periods"])
            found["fenced"] += fields["strategy"] == "FENCE"
            found["parked"] += fields["strategy"] == "PARK"
        elif event == "grace":
            found["grace_periods"] += thread in calling
        elif event == "eintr":
            found["eintr"] += 1
        elif event == "sys_tgkill":
            found["kicks"] += 1
    return {**found, "kernel_ms": inside / 1000}


def transactions(log: Path) -> tuple[int, float]:
    """Memory transactions that a patched QEMU traced, and the milliseconds that they took."""
    times = re.findall(r"^kvm_region_commit .* took (\d+) ns", log.read_text(errors="replace"), re.M)
    return len(times), sum(map(int, times)) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qemu", required=True, metavar="WORDS", help="its command, with its accelerator")
    parser.add_argument("--smp", type=int, required=True, metavar="N", help="vCPUs")
    parser.add_argument("--patched", action="store_true", help="it has the patches of contrib/qemu")
    parser.add_argument("--patience", type=float, default=60, metavar="SECONDS", help="default: %(default)s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, tracing() as buffer:
        folder = Path(name)
        log = folder / "trace"
        words = [*shlex.split(arguments.qemu), "-smp", str(arguments.smp)]
        if arguments.patched:
            words += ["-trace", "kvm_region_commit", "-D", str(log)]
        (buffer / "tracing_on").write_text("1")
        outcome, seconds, said = boot(words, arguments.patience, folder)
        (buffer / "tracing_on").write_text("0")
        report: Json = {"outcome": outcome, "seconds": round(seconds, 3), **counted(traced(buffer))}
        report["ms"] = report["kernel_ms"]
        if arguments.patched:
            report["transactions"], report["ms"] = transactions(log)
        if outcome != "finished":
            report["said"] = said[-1000:]
    print(json.dumps(report))


if __name__ == "__main__":
    main()
