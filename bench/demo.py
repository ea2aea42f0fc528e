#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Shows what the module does: `make demo`.

In a test VM: Debian's own QEMU boots without and with memslot-run; guests that
count holes and torn reads, with changes one by one and batched; what a
transaction costs, both ways in one run.  Writes build/demo.json.

Everything but a few samples of each is sized by time, so that a slow or busy
machine takes not much longer.  What could not be measured is a line of the
table, and no failure; a failure is what must not happen with the module,
however slow the machine is.
"""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from figures import compare
from in_vm import BUILD, PROJECT, Json, common_options
from debian import DebianError
from options import at_least
from runner import VM, Outcome, VMError

BOOTS = PROJECT / "tests" / "system" / "boots.py"
MEMSLOT_RUN = BUILD / "tools" / "memslot-run"
CHURN = BUILD / "guests" / "churn"
BENCH = BUILD / "bench" / "guest_bench"
VCPUS = (1, 2, 4, 8)
MODES = {"one_by_one": "one by one", "batched": "batched"}

# MiB that the guest uses.  Each deletion through KVM makes it fault all of it in again, so one by one costs more
# the larger a guest is; the small one has little but the memory that changes.
SMALL_GUEST, GUEST = 1, 64

# Seconds after which a step hangs, on a quiet machine: all are sized by time, and need a fraction of it.
STEP_TIMEOUT = 120.0


@dataclass(frozen=True)
class Effort:
    """How much is measured; times in seconds."""

    boots: int  # each way, at most
    least_boots: int
    boot_seconds: float  # each way; no boot begins after that
    guest_seconds: float  # of changes, for each mode and number of vCPUs
    work_seconds: int  # for each line of WORK
    least_rounds: int  # of it


FULL = Effort(boots=10, least_boots=3, boot_seconds=40, guest_seconds=4, work_seconds=8, least_rounds=4)
QUICK = Effort(boots=2, least_boots=1, boot_seconds=5, guest_seconds=0.5, work_seconds=1, least_rounds=2)


@dataclass(frozen=True)
class Work:
    """A scenario of guest_bench in a guest of some size, and what of its report is shown: by key, kinds and a title."""

    scenario: str
    mib: int
    shown: dict[str, tuple[Sequence[str], str]]


THREE = ("split", "merge")
WORK = (
    Work("split-merge", GUEST, {"three_changes_1_vcpu": (THREE, f"three changes, {GUEST} MiB guest")}),
    Work("split-merge", SMALL_GUEST, {"three_changes_1_vcpu_tiny_guest": (THREE, f"three changes, {SMALL_GUEST} MiB guest")}),
    Work(
        "plug",
        GUEST,
        {"delete_512_1_vcpu": (["delete 512"], "delete 512 slots"), "create_512_1_vcpu": (["create 512"], "create 512 slots")},
    ),
)


def times(ns: Json) -> str:
    """A ratio and, of more than a few samples, its standard error."""
    error = "" if ns["ratio_error"] is None else f" ± {ns['ratio_error'] * 100:.0f} %"
    return f"{ns['one_by_one_ns'] / ns['batched_ns']:.1f}x{error}"


def say(text: str = "", end: str = "\n") -> None:
    print(text, end=end, flush=True)


@contextmanager
def ticking() -> Iterator[None]:
    """A dot every two seconds, for what cannot tell how far it is."""
    done = threading.Event()

    def tick() -> None:
        while not done.wait(2):
            say(".", end="")

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def lines(take: Callable[[str], None]) -> Callable[[bytes], None]:
    """Cuts what comes into lines."""
    buffered = b""

    def on_data(data: bytes) -> None:
        nonlocal buffered
        *whole, buffered = (buffered + data).split(b"\n")
        for line in whole:
            take(line.decode(errors="replace"))

    return on_data


@dataclass
class Steps:
    """Runs the steps in the VM; what could not be measured, and what must not have happened."""

    vm: VM
    not_measured: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def run(
        self, title: str, command: Sequence[object], *, with_module: bool, on_line: Callable[[str], None] | None = None
    ) -> Json | None:
        """Runs a program of the VM, with a dot per line that it has for people; the last line that it prints is JSON.

        None, after noting why, if there is nothing to show.  with_module: a warning of the kernel, a lost VM or an
        error is a failure; without, it is KVM's own.  Too slow is no failure, unless the kernel itself hangs.
        """
        try:
            result = self.vm.run(
                *map(str, command),
                timeout=STEP_TIMEOUT,
                on_stdout=lines(on_line) if on_line else None,
                on_stderr=lines(lambda _: say(".", end="")),
            )
        except VMError as error:
            self._note(title, str(error).partition("\n")[0], str(error), failed=True)
            return None
        if result.outcome is Outcome.OK and not result.complaints:
            report: Json = json.loads(result.stdout.splitlines()[-1])
            return report
        # Nothing but the kernel keeps a command from being killed
        slow = result.outcome is Outcome.TIMED_OUT and "cannot be killed" not in result.reason
        why = f"{result.reason}, after {result.seconds:.0f} s"
        if result.complaints:
            why = f"the kernel warned: {result.complaints[0]}"
        self._note(title, why, result.report(), failed=with_module and bool(result.complaints or not slow))
        return None

    def _note(self, title: str, why: str, report: str, *, failed: bool) -> None:
        say(f" not measured: {why}")
        print(report, file=sys.stderr)
        self.not_measured[title] = why
        if failed:
            self.failures.append(f"{title}: {why}")


def boots(steps: Steps, effort: Effort, with_memslot: bool) -> Json:
    """Boots stock QEMU: how often it died, and what memslot-run counted."""
    title = "with memslot-run" if with_memslot else "stock"
    marks = {"finished": "F", "died": "X", "stuck": "?"}
    total: Json = {"boots": 0, "died": 0, "finished": 0, "stuck": 0}
    if with_memslot:
        total |= {"changes": 0, "commits": 0, "fenced": 0, "parked": 0, "failed": 0, "lost": 0, "ms_in_commits": 0.0}

    def take(line: str) -> None:
        boot = json.loads(line)
        total["boots"] += 1
        total[boot["outcome"]] += 1
        for key, value in boot.get("memslot", {}).items():
            if key in total:
                total[key] += value
        say(marks[boot["outcome"]], end="")

    say(f"  {title:20} ", end="")
    command = [BOOTS, "--boots", effort.boots, "--least", effort.least_boots, "--seconds", effort.boot_seconds]
    if with_memslot:
        command += ["--memslot-run", MEMSLOT_RUN]
    # What came before a step broke off counts as well
    if steps.run(f"boots, {title}", command, with_module=with_memslot, on_line=take) is not None:
        say(f"  {total['finished']} finished, {total['died']} died" + (f", {total['stuck']} stuck" if total["stuck"] else ""))
    if with_memslot:
        total["ms_in_commits"] = round(total["ms_in_commits"], 3)
    return total


def guests(steps: Steps, effort: Effort) -> Json:
    """Guests that count what they see, per mode and number of vCPUs; what could not be measured is missing."""
    seen: Json = {}
    # churn gives each of its five scenarios this long
    milliseconds = round(effort.guest_seconds * 1000 / 5)
    for key, mode in MODES.items():
        seen[key] = {}
        for vcpus in VCPUS:
            title = f"{vcpus} vCPU{'s' if vcpus > 1 else ''}, {mode}"
            say(f"  {title:20} ", end="")
            command = [CHURN, "--mode", mode.replace(" ", "-"), "--vcpus", vcpus, "--milliseconds", milliseconds]
            report = steps.run(title, command, with_module=key == "batched")
            if report is None:
                continue
            seen[key][str(vcpus)] = {
                name: report[name] for name in ("holes", "torn", "errors", "transactions", "fenced", "parked")
            }
            say(
                f"{report['transactions']:7,} changes {report['holes']:9,} holes {report['torn']:9,} torn reads"
                f" {report['errors']:9,} internal errors"
            )
    return seen


def ratios(steps: Steps, effort: Effort) -> Json:
    """One by one against batched, measured side by side in one run; what could not be measured is missing."""
    measured: Json = {}
    samples: Json = {}
    for work in WORK:
        title = " and ".join(title for _, title in work.shown.values())
        say(f"  {title} ", end="")
        command = [BENCH, "--scenario", work.scenario, "--ways", "kvm,fence", "--timed", "--block", 0, "--other", work.mib]
        command += ["--rounds", effort.least_rounds, "--seconds", effort.work_seconds]
        report = steps.run(title, command, with_module=True)
        if report is None:
            continue
        say()
        for name, (kinds, title) in work.shown.items():
            ns = samples[name] = compare(report, kinds)
            measured[name] = round(ns["one_by_one_ns"] / ns["batched_ns"], 1)
            say(
                f"    {title:30} {ns['one_by_one_ns'] / 1e6:8.2f} ms one by one {ns['batched_ns'] / 1e6:8.2f} ms batched:"
                f" {times(ns)}, {ns['samples']} of each"
            )
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
    row(f"Debian's QEMU {demo['qemu']}, 4 vCPUs, SeaBIOS", "as it is", "memslot-run")
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
    row("Guests that watch their memory change", *MODES.values())
    line("├", "┼", "┤")
    for vcpus in map(str, VCPUS):
        columns = [demo["guests"][mode].get(vcpus) for mode in MODES]

        def count(name: str) -> list[str]:
            return [f"{seen[name]:,}" if seen else "-" for seen in columns]

        row(f"{vcpus} vCPU{'s' if vcpus != '1' else ''}: holes", *count("holes"))
        row("        torn reads (new, then old)", *count("torn"))
        row("        internal errors", *count("errors"))
    line("├", "┼", "┤")
    row("Time of a transaction, 1 vCPU running", *MODES.values())
    line("├", "┼", "┤")
    for name, (_, title) in (shown for work in WORK for shown in work.shown.items()):
        ns = demo["nanoseconds"].get(name)
        if ns:
            title += f": {times(ns)}"
        row(title, *(f"{ns[f'{mode}_ns'] / 1e6:.2f} ms" if ns else "-" for mode in MODES))
    if demo["not_measured"]:
        line("├", "┴", "┤")
        for title, why in demo["not_measured"].items():
            for text in textwrap.wrap(f"not measured: {title}: {why}", 75, subsequent_indent="  "):
                say(f"│ {text:75} │")
        say("└" + "─" * 77 + "┘")
    else:
        line("└", "┴", "┘")


def qemu_version(vm: VM) -> str:
    """The QEMU of this machine's Debian, which the VM runs, too."""
    said = vm.run("qemu-system-x86_64", "--version").stdout
    found = re.search(r"version (\d+\.\d+)", said)
    return found[1] if found else "?"


def failures(demo: Json) -> list[str]:
    """What must not have happened, of what was counted."""
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


def main(arguments_: Sequence[str] | None = None) -> int:
    parser = common_options("Shows what the module does; use `make demo`, which builds all it needs.", "demo.json")
    parser.add_argument("--quick", action="store_true", help="few boots and samples, for a look and for tests")
    parser.add_argument("--boots", type=at_least(1), help=f"of QEMU, each way, at most; default: {FULL.boots}, {QUICK.boots} with --quick")
    arguments = parser.parse_args(arguments_)
    effort = QUICK if arguments.quick else FULL
    if arguments.boots:
        effort = replace(effort, boots=arguments.boots)

    missing = [str(path) for path in (MEMSLOT_RUN, CHURN, BENCH) if not path.exists()]
    if missing:
        say(f"demo: not built yet: {', '.join(missing)}; run `make demo`")
        return 2

    start = time.monotonic()
    demo: Json = {}
    try:
        with VM(arguments.kernel, module=True) as vm:
            say(f"Booting a test VM with Debian's kernel {arguments.kernel} and the module ", end="")
            with ticking():
                vm.start()
            say(f" {time.monotonic() - start:.0f} seconds")
            steps = Steps(vm)
            demo["qemu"] = qemu_version(vm)
            say("Stock QEMU boots (F finished, X KVM internal error, ? stuck):")
            demo["stock"] = boots(steps, effort, with_memslot=False)
            demo["memslot"] = boots(steps, effort, with_memslot=True)
            say("Guests that read and execute memory while it is split, merged, replaced and moved:")
            demo["guests"] = guests(steps, effort)
            say("Time of a transaction while 1 vCPU runs:")
            demo |= ratios(steps, effort)
    except (VMError, DebianError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say()
        return 130

    demo["load_average"] = round(os.getloadavg()[1], 1)
    demo["not_measured"] = steps.not_measured
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(demo, indent=2) + "\n")
    table(demo)
    if demo["load_average"] > vm.cpus + 1:
        say(f"Others kept this machine busy (load average {demo['load_average']}): the times and the ratios are those of a busy machine.")
    say(f"{time.monotonic() - start:.0f} seconds; the same as JSON: {arguments.output}")
    bad = steps.failures + failures(demo)
    for text in bad:
        say(f"demo: FAILED: {text}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
