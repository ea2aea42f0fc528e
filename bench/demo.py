#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Shows what the module does: `make demo`.

In a test VM: Debian's own QEMU boots without and with memslot-run; guests that
count holes and torn reads, with changes one by one and batched; what a
transaction costs, both ways in one run.  Writes build/demo.json.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass

from in_vm import BUILD, PROJECT, Json, common_options
from debian import DebianError
from options import at_least
from runner import VM, Outcome, Result, VMError

BOOTS = PROJECT / "tests" / "qemu" / "boots.py"
MEMSLOT_RUN = BUILD / "tools" / "memslot-run"
CHURN = BUILD / "guests" / "churn"
BENCH = BUILD / "guests" / "slot_bench"
VCPUS = (1, 2, 4, 8)
MODES = {"one_by_one": "one-by-one", "batched": "batched"}

# MiB that the guest uses.  Each deletion through KVM makes it fault all of it in again, so one by one costs more
# the larger a guest is; the small one has nothing but the memory that changes.
SMALL_GUEST, GUEST = 0, 64


@dataclass(frozen=True)
class Work:
    """A piece of work of slot_bench, and a guest's size."""

    name: str
    key: str
    mib: int
    title: str


WORK = (
    Work("three_changes_1_vcpu", "three_changes", GUEST, f"three changes, {GUEST} MiB guest"),
    Work("three_changes_1_vcpu_tiny_guest", "three_changes", SMALL_GUEST, "three changes, 256 KiB guest"),
    Work("delete_512_1_vcpu", "delete_512", GUEST, "delete 512 slots"),
    Work("create_512_1_vcpu", "create_512", GUEST, "create 512 slots"),
)


class DemoError(Exception):
    """Something in the demonstration itself did not work."""


def say(text: str = "", end: str = "\n") -> None:
    print(text, end=end, flush=True)


def checked(result: Result) -> Result:
    if result.outcome is not Outcome.OK or result.complaints:
        raise DemoError(result.report())
    return result


def boots(vm: VM, count: int, with_memslot: bool) -> Json:
    """Boots stock QEMU: how often it died, and what memslot-run counted."""
    title = "with memslot-run" if with_memslot else "stock"
    marks = {"finished": ".", "died": "X", "stuck": "?"}
    total: Json = {"boots": 0, "died": 0, "finished": 0, "stuck": 0}
    if with_memslot:
        total |= {"changes": 0, "commits": 0, "fenced": 0, "parked": 0, "failed": 0, "lost": 0, "ms_in_commits": 0.0}

    say(f"  {title:18} ", end="")
    buffered = b""

    def on_stdout(data: bytes) -> None:
        nonlocal buffered
        buffered += data
        while b"\n" in buffered:
            line, buffered = buffered.split(b"\n", 1)
            boot = json.loads(line)
            total["boots"] += 1
            total[boot["outcome"]] += 1
            for key, value in boot.get("memslot", {}).items():
                if key in total:
                    total[key] += value
            say(marks[boot["outcome"]], end="")

    command = [str(BOOTS), "--boots", str(count)]
    if with_memslot:
        command += ["--memslot-run", str(MEMSLOT_RUN)]
    checked(vm.run(*command, timeout=60 + 90 * count, on_stdout=on_stdout))
    say(f"  {total['finished']} finished, {total['died']} died" + (f", {total['stuck']} stuck" if total["stuck"] else ""))
    if with_memslot:
        total["ms_in_commits"] = round(total["ms_in_commits"], 3)
    return total


def guests(vm: VM, transactions: int) -> Json:
    """Guests that count what they see, per mode and number of vCPUs."""
    seen: Json = {}
    for key, mode in MODES.items():
        seen[key] = {}
        for vcpus in VCPUS:
            say(f"  {mode:18} {vcpus} vCPU{'s' if vcpus > 1 else ' '}  ", end="")
            result = checked(
                vm.run(CHURN, "--mode", mode, "--vcpus", str(vcpus), "--transactions", str(transactions), timeout=300)
            )
            report = json.loads(result.stdout)
            seen[key][str(vcpus)] = {name: report[name] for name in ("holes", "torn", "errors", "transactions", "fenced", "parked")}
            say(f"{report['holes']:9,} holes {report['torn']:9,} torn reads {report['errors']:9,} internal errors")
    return seen


def ratios(vm: VM) -> Json:
    """One by one against batched, measured side by side in one run."""
    measured: Json = {}
    samples: Json = {}
    for mib in (SMALL_GUEST, GUEST):
        report = json.loads(checked(vm.run(BENCH, "--other", str(mib), "--rounds", "60", timeout=300)).stdout)
        for work in (work for work in WORK if work.mib == mib):
            one_by_one, batched = report[work.key]["one_by_one_ns"], report[work.key]["batched_ns"]
            measured[work.name] = round(one_by_one / batched, 1)
            samples[work.name] = report[work.key]
            say(f"  {work.title:34} {one_by_one / 1e6:9.2f} ms one by one {batched / 1e6:9.2f} ms batched   {one_by_one / batched:6.1f} times faster")
    return {"ratios": measured, "nanoseconds": samples}


def table(demo: Json) -> None:
    """The end of it all, for people."""

    def row(title: str, one: object, other: object) -> None:
        say(f"│ {title:45} │ {one!s:>12} │ {other!s:>12} │")

    def line(left: str, middle: str, right: str) -> None:
        say(left + "─" * 47 + middle + "─" * 14 + middle + "─" * 14 + right)

    stock, memslot = demo["stock"], demo["memslot"]
    say()
    line("┌", "┬", "┐")
    row("Debian's QEMU 7.2, 4 vCPUs, SeaBIOS", "as it is", "memslot-run")
    line("├", "┼", "┤")
    row("boots", stock["boots"], memslot["boots"])
    row("died with a KVM internal error", stock["died"], memslot["died"])
    row("reached the end of the firmware", stock["finished"], memslot["finished"])
    row("memslot changes", "", memslot["changes"])
    row("commits", "", memslot["commits"])
    row("  fenced: no vCPU left KVM_RUN", "", memslot["fenced"])
    row("  parked: KVM_RUN returned EINTR", "", memslot["parked"])
    row("milliseconds in commits, all boots", "", f"{memslot['ms_in_commits']:.1f}")
    line("├", "┼", "┤")
    row("Guests that watch their memory change", "one by one", "batched")
    line("├", "┼", "┤")
    one, batched = demo["guests"]["one_by_one"], demo["guests"]["batched"]
    for vcpus in map(str, VCPUS):
        plural = "s" if vcpus != "1" else ""
        row(f"{vcpus} vCPU{plural}: holes", f"{one[vcpus]['holes']:,}", f"{batched[vcpus]['holes']:,}")
        row("        torn reads (new, then old)", f"{one[vcpus]['torn']:,}", f"{batched[vcpus]['torn']:,}")
        row("        internal errors", f"{one[vcpus]['errors']:,}", f"{batched[vcpus]['errors']:,}")
    line("├", "┼", "┤")
    row("Time of a transaction, 1 vCPU running", "one by one", "batched")
    line("├", "┼", "┤")
    for work in WORK:
        ns = demo["nanoseconds"][work.name]
        row(f"{work.title}: {demo['ratios'][work.name]}x", f"{ns['one_by_one_ns'] / 1e6:.2f} ms", f"{ns['batched_ns'] / 1e6:.2f} ms")
    line("└", "┴", "┘")


def failures(demo: Json) -> list[str]:
    """What must not have happened."""
    found = []
    memslot = demo["memslot"]
    if memslot["finished"] != memslot["boots"]:
        found.append(f"{memslot['boots'] - memslot['finished']} boots with the module did not reach the end of the firmware")
    if memslot["failed"] or memslot["lost"]:
        found.append(f"memslot-run made {memslot['failed']} batches one by one and lost {memslot['lost']}")
    for vcpus, seen in demo["guests"]["batched"].items():
        bad = {name: seen[name] for name in ("holes", "torn", "errors") if seen[name]}
        if bad:
            found.append(f"guests with {vcpus} vCPUs, batched: {bad}")
    return found


def main() -> int:
    parser = common_options("Shows what the module does; use `make demo`, which builds all it needs.", "demo.json")
    parser.add_argument("--boots", type=at_least(1), default=10, help="of QEMU, each way; default: %(default)s")
    parser.add_argument("--transactions", type=at_least(1), default=16, help="per scenario, mode and vCPU count; default: %(default)s")
    arguments = parser.parse_args()

    missing = [str(path) for path in (MEMSLOT_RUN, CHURN, BENCH) if not path.exists()]
    if missing:
        say(f"demo: not built yet: {', '.join(missing)}; run `make demo`")
        return 2

    start = time.monotonic()
    demo: Json = {}
    try:
        say(f"Booting a test VM with Debian's kernel {arguments.kernel} and the module ...")
        with VM(arguments.kernel, module=True) as vm:
            # it boots, and is downloaded, when it is first needed
            checked(vm.run("true"))
            say("Stock QEMU boots (. finished, X KVM internal error, ? stuck):")
            demo["stock"] = boots(vm, arguments.boots, with_memslot=False)
            demo["memslot"] = boots(vm, arguments.boots, with_memslot=True)
            say("Guests that read and execute memory while it is split, merged, replaced and moved:")
            demo["guests"] = guests(vm, arguments.transactions)
            say("Time of a transaction while 1 vCPU runs:")
            demo |= ratios(vm)
    except (DemoError, VMError, DebianError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1

    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(demo, indent=2) + "\n")
    table(demo)
    say(f"{time.monotonic() - start:.0f} seconds; the same as JSON: {arguments.output}")
    bad = failures(demo)
    for text in bad:
        say(f"demo: FAILED: {text}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
