# SPDX-License-Identifier: GPL-2.0
"""What the reports of guest_bench come to: figures of one run, and the summary of all."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

WAYS = {
    "kvm": "KVM, one by one",
    "kvm-zap": "KVM without its zap-all quirk",
    "pause": "vCPUs paused, KVM",
    "list": "list ioctl of 2022",
    "park": "memslot, asked to park",
    "fence": "memslot",
    "replace-all": "memslot, told all slots",
}
# After these each page that is written to faults once, on purpose
DIRTYING = {"log", "unlog"}


def quantile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that so many of them are not above."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def times(samples: Sequence[float]) -> Json:
    """Of nanoseconds."""
    return {
        "samples": len(samples),
        "median_ns": statistics.median(samples),
        "p99_ns": quantile(samples, 0.99),
        "worst_ns": max(samples),
    }


def median_error(samples: Sequence[float]) -> float:
    """Relative standard error of the median, from the distance of the quartiles: outliers count as little as they do for it."""
    ordered, count = sorted(samples), len(samples)
    # As for a normal distribution, whose quartiles are 1.349 standard deviations apart
    return 1.2533 * (ordered[count * 3 // 4] - ordered[count // 4]) / 1.349 / math.sqrt(count) / ordered[count // 2]


def compare(report: Json, kinds: Sequence[str]) -> Json:
    """KVM's calls one by one beside a commit, of transactions of these kinds together."""
    by_way = {
        name: [ns for kind in kinds for ns in report["ways"][way]["ns"][kind]]
        for name, way in {"one_by_one": "kvm", "batched": "fence"}.items()
    }
    return {
        "samples": len(by_way["batched"]),
        **{f"{name}_ns": statistics.median(samples) for name, samples in by_way.items()},
        # Of fewer there is none
        "ratio_error": math.hypot(*map(median_error, by_way.values())) if len(by_way["batched"]) >= 4 else None,
    }


def ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else round(one / other, 3)


def speed_share(disturbed: Json, undisturbed: Json) -> float | None:
    """How fast vCPUs were, as a share: the median of pairs of blocks, of which each is a minute's neighbour of the other."""
    shares = [
        touches / ns * other_ns / other_touches
        for touches, ns, other_touches, other_ns in zip(
            disturbed["touches"], disturbed["ns"], undisturbed["touches"], undisturbed["ns"], strict=True
        )
        if other_touches
    ]
    return round(statistics.median(shares), 3) if shares else None


def gap(blocks: Json, ticks_per_ns: float) -> Json | None:
    """The longest gap of each block between two touches of a vCPU: the median of them, and the worst."""
    longest = [ticks / ticks_per_ns for ticks in blocks["longest_ticks"]]
    return {"median_ns": round(statistics.median(longest)), "worst_ns": round(max(longest))} if longest else None


def histogram(blocks: Json, ticks_per_ns: float) -> list[tuple[float, int]]:
    """Gaps from so many nanoseconds on, up to twice as many: how many there were."""
    return [(2**n / ticks_per_ns, count) for n, count in enumerate(blocks["gaps"]) if count]


def list_ioctl(counted: Json) -> Json:
    """What the ioctl of 2022 would have done, by count: a swap and a grace period for each deletion, and one more."""
    return {"transactions": counted["transactions"], "calls": counted["transactions"],
            "grace_periods": counted["deletes"] + counted["transactions"]}  # fmt: skip


def figures_of(report: Json) -> Json:
    """By way: what one run of guest_bench has shown."""
    ticks = report["ticks_per_ns"]
    found: Json = {
        way: {
            "times": {kind: times(samples) for kind, samples in seen["ns"].items()},
            "counted": seen["counted"],
            "witness_share": speed_share(seen["looking_on"], seen["undisturbed"]),
            "witness_gap": gap(seen["looking_on"], ticks),
            "undisturbed_gap": gap(seen["undisturbed"], ticks),
            "touching_gap": gap(seen["touching"], ticks),
            "histogram": histogram(seen["looking_on"], ticks),
            "undisturbed_histogram": histogram(seen["undisturbed"], ticks),
            **{name: seen[name] for name in ("transactions", "eintr", "holes", "fenced", "parked")},
        }
        for way, seen in report["ways"].items()
    }
    if "kvm" in found:
        counted = {kind: list_ioctl(counts) for kind, counts in found["kvm"]["counted"].items()}
        found["list"] = {"counted": counted}
    return found


@dataclass(frozen=True)
class Run:
    """One run of guest_bench, and what it has shown."""

    name: str  # of the scenario; with what is special about it, say its guest's size
    vcpus: int
    report: Json
    figures: Json


def median(run: Run, way: str, kind: str) -> float | None:
    try:
        value: float = run.figures[way]["times"][kind]["median_ns"]
    except KeyError:
        return None
    return value


def of_all_kinds(run: Run, way: str) -> float | None:
    """Geometric mean of the medians, so that each kind of transaction counts as much."""
    medians = [found["median_ns"] for found in run.figures.get(way, {}).get("times", {}).values()]
    return statistics.geometric_mean(medians) if medians else None


def by_vcpus(runs: Iterable[Run], figure: Any) -> Json:
    """By scenario and number of vCPUs, where there is such a figure."""
    found: Json = {}
    for run in runs:
        value = figure(run)
        if value is not None:
            found.setdefault(run.name, {})[str(run.vcpus)] = value
    return found


def gap_ratio(run: Run, way: str, gaps: str) -> float | None:
    """The median of witnesses' longest gaps with memslot, beside other ones."""
    ours, other = run.figures["fence"]["witness_gap"], run.figures.get(way, {}).get(gaps)
    return ratio(ours["median_ns"], other["median_ns"]) if ours and other else None


def versus(run: Run, way: str) -> Json | None:
    """By kind of transaction: how many times longer than with memslot it takes."""
    found = {
        kind: ratio(median(run, way, kind), median(run, "fence", kind))
        for kind in run.figures["fence"]["times"]
        if median(run, way, kind) is not None
    }
    return found or None


def most_faults(runs: Iterable[Run], kind: str, counted: str = "faults") -> int | None:
    """That any transaction of this kind has caused with memslot, of runs in which its memory is touched."""
    found = [run.figures["fence"]["counted"][kind][counted] for run in runs if kind in run.figures["fence"]["counted"]]
    return max(found, default=None)


def instructions(run: Run) -> Json:
    """By kind of transaction, of a run without vCPUs on a machine whose nanoseconds are instructions."""
    found: Json = {}
    for kind in run.figures["fence"]["times"]:
        of_ways = {way: median(run, way, kind) for way in run.figures if "times" in run.figures[way]}
        found[kind] = {**of_ways, "ratio": ratio(of_ways["fence"], of_ways["kvm"])}
    return found


def of_witnesses(runs: Sequence[Run]) -> Json:
    """By scenario and number of vCPUs: how fast witnesses were, and the longest gaps that they saw."""
    return {
        "witness_share": by_vcpus(runs, lambda run: run.figures["fence"]["witness_share"]),
        "witness_share_kvm": by_vcpus(runs, lambda run: run.figures.get("kvm", {}).get("witness_share")),
        "witness_gap_vs_kvm": by_vcpus(runs, lambda run: gap_ratio(run, "kvm", "witness_gap")),
        "witness_gap_vs_undisturbed": by_vcpus(runs, lambda run: gap_ratio(run, "fence", "undisturbed_gap")),
    }


def of_times(runs: Sequence[Run], cores: int) -> Json:
    """How many times longer other ways take than memslot."""
    split = [run for run in runs if run.name == "split-merge"]
    at = {run.vcpus: of_all_kinds(run, "fence") for run in split}
    return {
        "vs_pause": {str(run.vcpus): ratio(of_all_kinds(run, "pause"), of_all_kinds(run, "fence")) for run in split},
        "vs_kvm": by_vcpus(runs, lambda run: versus(run, "kvm")),
        "replace_all": by_vcpus(runs, lambda run: versus(run, "replace-all")),
        "growth_1_to_cores": ratio(at.get(cores), at.get(1)),
    }


def summarize(timed: Sequence[Run], counted: Sequence[Run], without_vcpus: Sequence[Run], cores: int) -> Json:
    """What is to be known of all runs; what was not measured is empty or null.

    by_instructions is the same of the machine whose clock counts them: one processor, and no noise.
    """
    runs = [*timed, *counted]
    splits = [run for run in runs if run.name.startswith("split-merge")]
    kinds = {kind for run in runs for kind in run.figures["fence"]["counted"]}
    counted_by_scenario = {run.name: instructions(run) for run in without_vcpus}
    return {
        **of_witnesses(timed),
        **of_times(timed, cores),
        "by_instructions": {**of_witnesses(counted), **of_times(counted, cores)},
        "faults_after_split": most_faults(splits, "split"),
        "faults_after_merge": most_faults(splits, "merge"),
        "faults_elsewhere": max((most_faults(runs, kind, "faults_elsewhere") or 0 for kind in kinds - DIRTYING), default=None),
        "eintr_per_commit": by_vcpus(runs, lambda run: ratio(run.figures["fence"]["eintr"], run.figures["fence"]["transactions"])),
        "holes": {
            way: sum(run.figures[way]["holes"] for run in runs if way in run.figures)
            for way in WAYS
            if any("holes" in run.figures.get(way, {}) for run in runs)
        },
        "instructions": counted_by_scenario.get("single"),
        "instructions_by_scenario": counted_by_scenario,
        "cores": cores,
    }


@dataclass(frozen=True)
class Aim:
    """A figure that is to be reached."""

    told: str
    clock: str  # what it is measured by
    least: bool  # else it is the most that it may be
    value: float
    seen: float | None

    @property
    def reached(self) -> bool | None:
        if self.seen is None:
            return None
        return self.seen >= self.value if self.least else self.seen <= self.value


def extreme(take: Any, values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return take(found) if found else None


def aims(summary: Json) -> list[Aim]:
    """To reach, and seen; of several runs the worst."""
    exact = summary["by_instructions"]
    witnesses, clock = (exact, "instructions") if exact["witness_share"] else (summary, "time")
    few = ("1", "2", "4")

    def worst_of_few(name: str, take: Any) -> float | None:
        return extreme(take, (of.get(vcpus) for of in witnesses[name].values() for vcpus in few))

    def worst(way: str, scenario: str, kind: str, take: Any = min) -> float | None:
        return extreme(take, (kinds.get(kind) for kinds in summary[way].get(scenario, {}).values()))

    counted = summary["instructions"] or {}
    eintr = extreme(max, (n for of in summary["eintr_per_commit"].values() for n in of.values()))
    found = [
        Aim("witnesses' share of their speed, 1, 2 and 4 vCPUs", clock, True, 0.95, worst_of_few("witness_share", min)),
        Aim("their gap beside an undisturbed one", clock, False, 1, worst_of_few("witness_gap_vs_undisturbed", max)),
        Aim("window: map, times faster than KVM", "time", True, 1, worst("vs_kvm", "window", "map")),
        Aim("window: unmap, times faster than KVM", "time", True, 1, worst("vs_kvm", "window", "unmap")),
        Aim("three changes, times faster than pause, 1 vCPU", "time", True, 10, summary["vs_pause"].get("1")),
        Aim("three changes, times faster than pause, worst", "time", True, 3, extreme(min, summary["vs_pause"].values())),
        Aim("512 deletes, times faster than one by one", "time", True, 50, worst("vs_kvm", "plug", "delete 512")),
        Aim("512 creates, times faster than one by one", "time", True, 4, worst("vs_kvm", "plug", "create 512")),
        Aim("4000 slots: replace-all beside the difference", "time", False, 2, worst("replace_all", "layout", "three of 4000", max)),
        Aim("EINTRs per commit", "count", False, 0, eintr),
        Aim("page faults after a split", "count", False, 0, summary["faults_after_split"]),
        Aim("page faults after a merge", "count", False, 0, summary["faults_after_merge"]),
        Aim("page faults on other memory", "count", False, 0, summary["faults_elsewhere"]),
        Aim("holes", "count", False, 0, summary["holes"].get("fence")),
    ]
    for kind, most in {"create": 1.05, "log": 1.05, "unlog": 1.05, "delete": 1.1, "move": 1.1}.items():
        found.append(Aim(f"{kind}: instructions beside KVM's", "instructions", False, most, counted.get(kind, {}).get("ratio")))
    return found
