#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""What a guest notices of memslot changes, and how long they take, in each way that there is: `make bench`.

In a test VM, for each scenario and number of vCPUs, guest_bench makes the same changes by turns through KVM's own ioctl one
by one, so but with all vCPUs paused, and through /dev/memslot, parked and as it chooses; what the list ioctl of 2022 would
have waited for is known by count.  Single changes are counted in instructions, on a machine whose clock counts them.

Writes build/bench/: samples.csv (each transaction that was timed), results.json, summary.json, a plot for each scenario, and
overview.svg, which docs/ has a copy of.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import WAYS, Run, aims, figures_of, summarize
from in_vm import BUILD, Json, aligned, common_options, pyplot, reports
from plots import plot_overview, plot_scenario

BENCH = BUILD / "bench" / "guest_bench"
SCENARIOS = {
    "ro-flip": "a 4 KiB page in the middle of a slot toggles READONLY: three slots and one again",
    "window": "1 MiB mapped and unmapped, 50 times a second",
    "banks": "64 KiB going round 19 host addresses, 60 times a second",
    "vsm": "pages at random toggle READONLY, among 1 to 4096 slots",
    "layout": "three slots of 1000 and of 4000 get other memory",
    "plug": "8, 64 and 512 slots created and deleted at once",
    "split-merge": "unchanged memory: one slot becomes three and one again, back to back",
    "grow": "a slot gets twice its size, and half of that",
    "log": "dirty logging of all slots on and off",
}
VCPUS = (1, 2, 4, 8, 16, 24)
GIB = 1024  # MiB
# The runs with a guest of a GiB: what is special about each, by name
SPECIAL: dict[str, tuple[str, int, list[object]]] = {
    "ro-flip, 1 GiB": ("ro-flip", 4, ["--guest", GIB]),
    "split-merge, 1 GiB": ("split-merge", 1, ["--guest", GIB, "--whole"]),
    "split-merge, 1 GiB, huge pages": ("split-merge", 1, ["--guest", GIB, "--whole", "--huge"]),
}


@dataclass(frozen=True)
class Effort:
    vcpus: Sequence[int]
    turns: Sequence[str]  # options of guest_bench: how many turns, and how long
    counted_vcpus: Sequence[int]  # the same on the machine that counts instructions, where no noise asks for many
    counted_turns: Sequence[str]
    memory: int  # of the VM, MiB


# Where instructions are counted, blocks are much longer than the scheduler's slices of 4 ms: in a short block, a witness's
# speed is the share of slices that it happened to get.  That emulator takes some ten seconds for a second of its own clock,
# so only the ways that the documentation compares are measured there.
FULL = Effort(
    VCPUS, ("--seconds", "12"), (1, 2, 4), ("--seconds", "0", "--rounds", "2", "--block", "200", "--ways", "kvm,pause,fence"), 4096
)
# In a small guest there is less that KVM drops and vCPUs have to map again
QUICK = Effort(
    (1, 2), ("--seconds", "0", "--block", "40", "--other", "1"),
    (1,), ("--seconds", "0", "--block", "80", "--ways", "kvm,fence", "--other", "1"), 2048,
)  # fmt: skip
# For what has no vCPU running, and is counted in instructions
WITHOUT_VCPUS = ("--vcpus", "0", "--seconds", "0", "--block", "0", "--rounds", "10")
# MiB, of guests that have a slot split and merged: what grows with a slot's pages
GUESTS = (256, GIB)


@dataclass(frozen=True)
class Plan:
    name: str
    vcpus: int
    arguments: list[str]

    @property
    def title(self) -> str:
        return f"{self.name}, {self.vcpus} vCPU{'s' if self.vcpus != 1 else ''}"


def plans(scenarios: Sequence[str], vcpus: Sequence[int], turns: Sequence[str], *, special: bool) -> list[Plan]:
    wanted: list[tuple[str, str, int, list[object]]] = [(name, name, count, []) for name in scenarios for count in vcpus]
    if special:
        wanted += [(name, scenario, count, more) for name, (scenario, count, more) in SPECIAL.items() if scenario in scenarios]
    return [
        Plan(name, count, ["--scenario", scenario, "--vcpus", str(count), *turns, *map(str, more)])
        for name, scenario, count, more in wanted
    ]


def plans_without_vcpus(scenarios: Sequence[str], *, quick: bool) -> list[Plan]:
    wanted: list[tuple[str, str, list[object]]] = [
        (name, name, []) for name in scenarios if not quick or name in ("single", "split-merge")
    ]
    if not quick and "split-merge" in scenarios:
        wanted += [(f"split-merge, {mib} MiB", "split-merge", ["--guest", mib]) for mib in GUESTS]
    return [Plan(name, 0, ["--scenario", scenario, *WITHOUT_VCPUS, *map(str, more)]) for name, scenario, more in wanted]


def measure(chosen: Sequence[Plan], kernel: str, **machine: Any) -> list[Run]:
    if not chosen:
        return []
    found = reports(BENCH, [plan.arguments for plan in chosen], kernel, titles=[plan.title for plan in chosen], **machine)
    return [Run(plan.name, plan.vcpus, report, figures_of(report)) for plan, report in zip(chosen, found)]


def milliseconds(nanoseconds: float | None) -> str:
    return "" if nanoseconds is None else f"{nanoseconds / 1e6:.2f}"


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def table(runs: Iterable[Run]) -> str:
    """One line per kind of transaction, way and number of vCPUs."""
    heads = ("vCPUs", "transaction", "way", "median ms", "p99", "worst", "witness", "its gap", "undist.", "touching",
             "grace p.", "zap-alls", "ranges", "kicks", "EINTR", "faults", "others'", "holes")  # fmt: skip
    rows: list[Sequence[str]] = [heads]
    for run in runs:
        for kind in run.figures["fence"]["counted"]:
            for way in WAYS:
                if way not in run.figures:
                    continue
                found = run.figures[way]
                timed = found.get("times", {}).get(kind, {})
                gaps = [found.get(name) or {} for name in ("witness_gap", "undisturbed_gap", "touching_gap")]
                counts = found["counted"][kind]
                exact = [
                    f"{counts[name] / counts['transactions']:g}" if name in counts else ""
                    for name in ("grace_periods", "zap_alls", "zapped_ranges", "kicks", "eintr", "faults", "faults_elsewhere")
                ]
                rows.append((
                    str(run.vcpus), kind, WAYS[way],
                    *(milliseconds(timed.get(name)) for name in ("median_ns", "p99_ns", "worst_ns")),
                    share(found.get("witness_share")), *(milliseconds(each.get("median_ns")) for each in gaps),
                    *exact, str(found.get("holes", "")),
                ))  # fmt: skip
    return aligned(rows, range(3))


def instruction_table(by_scenario: Json) -> str:
    rows: list[Sequence[str]] = [("scenario", "transaction", "KVM", "memslot", "asked to park", "all slots", "memslot / KVM")]
    for name, kinds in by_scenario.items():
        for kind, found in kinds.items():
            cells = [f"{found[way] / 1e3:.1f}" if way in found else "" for way in ("kvm", "fence", "park", "replace-all")]
            rows.append((name, kind, *cells, f"{found['ratio']:.3f}"))
    return aligned(rows, range(2))


def aim_table(summary: Json) -> str:
    rows: list[Sequence[str]] = [("", "by", "to reach", "seen", "")]
    words = {None: "not measured", True: "reached", False: "NOT reached"}
    for aim in aims(summary):
        seen = "" if aim.seen is None else f"{aim.seen:g}"
        rows.append((aim.told, aim.clock, f"{'≥' if aim.least else '≤'} {aim.value:g}", seen, words[aim.reached]))
    return aligned(rows, range(2))


def write(machines: Mapping[str, Sequence[Run]], summary: Json, output: Path) -> None:
    runs = [(clock, run) for clock, some in machines.items() for run in some]
    results = [
        {"clock": clock, "name": run.name, "vcpus": run.vcpus, "figures": run.figures, "report": run.report} for clock, run in runs
    ]
    (output / "results.json").write_text(json.dumps(results) + "\n")
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    with (output / "samples.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("clock", "scenario", "vcpus", "way", "transaction", "ns"))
        for clock, run in runs:
            for way, seen in run.report["ways"].items():
                for kind, samples in seen["ns"].items():
                    writer.writerows((clock, run.name, run.vcpus, way, kind, ns) for ns in samples)


def show(machines: Mapping[str, Sequence[Run]], summary: Json) -> None:
    for clock, runs in machines.items():
        for name in dict.fromkeys(run.name for run in runs):
            some = [run for run in runs if run.name == name]
            print(f"\n{name}, by {clock}: {SCENARIOS[name.partition(',')[0]]}\n{table(some)}")
    if summary["instructions_by_scenario"]:
        print(f"\nNo vCPU running, in thousands of instructions:\n{instruction_table(summary['instructions_by_scenario'])}")
    print(
        f"\nBy time: the clock of an emulated machine with {summary['cores']} processors, whose host had a load average of"
        f" {summary['load_average']:.1f}.\nBy instructions: one emulated processor, whose clock counts an instruction as a"
        " nanosecond; runs of it differ by a percent at most.\nCounts are exact in either."
    )
    print(f"\n{aim_table(summary)}")


def main() -> None:
    begin = time.monotonic()
    parser = common_options("What a guest notices of memslot changes; use `make bench`, which builds all it needs.", "bench")
    add = parser.add_argument
    add("--scenario", choices=[*SCENARIOS, "single"], nargs="+", help="default: all; single: one change of each kind, in instructions")
    add("--quick", action="store_true", help="few samples, for 1 and 2 vCPUs: a look in three minutes")
    arguments = parser.parse_args()
    effort = QUICK if arguments.quick else FULL
    drawing = pyplot()
    arguments.output.mkdir(parents=True, exist_ok=True)
    scenarios = arguments.scenario or [*SCENARIOS, "single"]
    with_vcpus = [name for name in scenarios if name in SCENARIOS]
    timed = measure(
        plans(with_vcpus, effort.vcpus, effort.turns, special=not arguments.quick), arguments.kernel, memory=effort.memory
    )
    counted = measure(
        [
            *plans(with_vcpus, effort.counted_vcpus, effort.counted_turns, special=False),
            *plans_without_vcpus(scenarios, quick=arguments.quick),
        ],
        arguments.kernel,
        counting=True,
    )
    without_vcpus = [run for run in counted if not run.vcpus]
    machines = {"time": timed, "instructions": [run for run in counted if run.vcpus]}
    summary = {
        **summarize(machines["time"], machines["instructions"], without_vcpus, len(os.sched_getaffinity(0))),
        "kernel": arguments.kernel,
        "load_average": os.getloadavg()[1],
    }
    write({**machines, "instructions": counted}, summary, arguments.output)
    for name in dict.fromkeys(run.name for run in timed):
        title = f"{name}: {SCENARIOS[name.partition(',')[0]]}"
        plot_scenario(drawing, title, [run for run in timed if run.name == name], arguments.output)
    # The plot of all scenarios needs each of them
    if not arguments.scenario:
        plot_overview(drawing, machines["instructions"], timed, arguments.output)
    show(machines, summary)
    print(f"{time.monotonic() - begin:.0f} seconds; {arguments.output} has each sample, and plots.")


if __name__ == "__main__":
    main()
