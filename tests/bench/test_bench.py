# SPDX-License-Identifier: GPL-2.0
"""`make bench`: what it makes of what guest_bench has seen; and a run of it, with few samples of one scenario."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from debian import PROJECT

sys.path.insert(0, str(PROJECT / "bench"))

import bench  # noqa: E402
import figures  # noqa: E402
import plots  # noqa: E402
from figures import Run, aims, figures_of, summarize  # noqa: E402
from in_vm import pyplot  # noqa: E402

Json = dict[str, Any]

COUNTS = dict.fromkeys(("calls", "deletes", "grace_periods", "faults", "faults_elsewhere", "eintr"), 0)


def blocks(touches: list[int], ns: list[int], longest: list[int]) -> Json:
    return {"touches": touches, "ns": ns, "longest_ticks": longest, "gaps": [0, 0, 3] + [0] * 61}


def seen(ns: list[int], touches: list[int], longest: list[int], **more: int) -> Json:
    counted = {"transactions": 2, **COUNTS, "deletes": 6}
    return {
        "ns": {"split": ns, "merge": ns},
        "counted": {"split": counted, "merge": counted},
        "looking_on": blocks(touches, [10, 10, 20], longest),
        "undisturbed": blocks([10, 10, 20], [10, 10, 20], [8, 2, 4]),
        "touching": blocks([], [], []),
        "transactions": 4,
        "eintr": 0,
        "holes": 0,
        "fenced": 0,
        "parked": 0,
        **more,
    }


def run(name: str = "split-merge", vcpus: int = 1, fence: int = 10) -> Run:
    report = {
        "ticks_per_ns": 2.0,
        "ways": {
            "kvm": seen([50, 40, 60], [1, 1, 8], [40, 80, 60], holes=3),
            "pause": seen([300, 200, 100], [0, 0, 0], [8, 8, 8], eintr=4),
            "fence": seen([fence] * 99 + [7000], [9, 5, 20], [2, 6, 400]),
        },
    }
    return Run(name, vcpus, report, figures_of(report))


def test_quantiles_are_samples() -> None:
    assert figures.quantile(range(1, 101), 0.99) == 99
    assert figures.quantile([3, 1, 2], 0.99) == 3
    assert figures.quantile([7], 0.5) == 7


def test_times_of_a_transaction() -> None:
    assert figures.times([10] * 98 + [20, 30]) == {"samples": 100, "median_ns": 10, "p99_ns": 20, "worst_ns": 30}


def test_speed_is_compared_pair_by_pair() -> None:
    """The median of 0.9, 0.5 and 1.0: a block that the machine was busy with something else in counts as one."""
    assert run().figures["fence"]["witness_share"] == 0.9
    assert figures.speed_share(blocks([], [], []), blocks([], [], [])) is None


def test_gaps_are_in_nanoseconds() -> None:
    fence = run().figures["fence"]
    assert fence["witness_gap"] == {"median_ns": 3, "worst_ns": 200}
    assert fence["undisturbed_gap"] == {"median_ns": 2, "worst_ns": 4}
    assert fence["touching_gap"] is None
    # 4 to 7 ticks
    assert fence["histogram"] == [(2.0, 3)]


def test_list_ioctl_is_counted() -> None:
    """In each of two transactions: three deletions, a swap for each, and one more."""
    assert run().figures["list"]["counted"]["split"] == {"transactions": 2, "calls": 2, "grace_periods": 8}


def test_error_of_a_median() -> None:
    assert figures.median_error([5, 5, 5, 5]) == 0
    assert figures.median_error([10, 20, 30, 40]) == pytest.approx(1.2533 * 20 / 1.349 / 2 / 30)
    report: Json = {"ways": {way: {"ns": {"one": [4, 4], "two": [2, 2, 2]}} for way in ("kvm", "fence")}}
    assert figures.compare(report, ["one", "two"]) == {"samples": 5, "one_by_one_ns": 2, "batched_ns": 2, "ratio_error": 1.2533 * 2 / 1.349 / 5**0.5 / 2 * 2**0.5}
    assert figures.compare(report, ["two"])["ratio_error"] is None


def test_summary() -> None:
    counting = Run("single", 0, {}, {way: {"times": {"create": {"median_ns": ns}}} for way, ns in {"kvm": 100, "park": 110, "fence": 105}.items()})
    found = summarize([run(), run(vcpus=2, fence=20), run("grow", 4)], [run("banks", 1)], [counting], cores=2)
    assert found["witness_share"] == {"split-merge": {"1": 0.9, "2": 0.9}, "grow": {"4": 0.9}}
    assert found["by_instructions"]["witness_share"] == {"banks": {"1": 0.9}}
    assert found["witness_gap_vs_kvm"]["grow"] == {"4": 0.1}
    assert found["witness_gap_vs_undisturbed"]["grow"] == {"4": 1.5}
    assert found["vs_pause"] == {"1": 20, "2": 10}
    assert found["vs_kvm"]["split-merge"]["2"] == {"split": 2.5, "merge": 2.5}
    assert found["growth_1_to_cores"] == 2
    assert found["faults_after_split"] == found["faults_after_merge"] == found["faults_elsewhere"] == 0
    assert found["eintr_per_commit"]["grow"] == {"4": 0}
    assert found["holes"] == {"kvm": 12, "pause": 0, "fence": 0}
    assert found["instructions_by_scenario"] == {"single": found["instructions"]}
    assert found["instructions"] == {"create": {"kvm": 100, "park": 110, "fence": 105, "ratio": 1.05}}
    by_name = {aim.told: aim for aim in aims(found)}
    assert by_name["three changes, times faster than pause, 1 vCPU"].reached is True
    assert by_name["witnesses' share of their speed, 1, 2 and 4 vCPUs"].reached is False
    assert by_name["create: instructions beside KVM's"].reached is True
    assert by_name["window: map, times faster than KVM"].reached is None


def test_nothing_measured_is_nothing_reached() -> None:
    found = summarize([], [], [], cores=2)
    assert {aim.reached for aim in aims(found)} == {None}
    assert "not measured" in bench.aim_table(found)


def test_every_scenario_and_count_is_planned() -> None:
    full = bench.plans(list(bench.SCENARIOS), bench.FULL.vcpus, [], special=True)
    assert len(full) == len(bench.SCENARIOS) * 6 + len(bench.SPECIAL)
    assert [plan.name for plan in bench.plans(["grow"], [1], [], special=True)] == ["grow"]
    assert len(bench.plans_without_vcpus(list(bench.SCENARIOS), quick=False)) == len(bench.SCENARIOS) + len(bench.GUESTS)
    assert [plan.name for plan in bench.plans_without_vcpus(list(bench.SCENARIOS), quick=True)] == ["split-merge"]


def test_all_scenarios_are_in_one_plot(tmp_path: Path) -> None:
    """The same runs make the same file, so that the documentation's changes when the figures do."""
    drawn = []
    for share in (10, 10, 20):
        plots.plot_overview(pyplot(), [run(), run("grow", fence=share)], [run(), run(vcpus=2, fence=share)], tmp_path)
        drawn.append((tmp_path / "overview.svg").read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]
    assert {path.name for path in tmp_path.iterdir()} == {"overview.svg", "overview.png"}


def test_quick_run_of_one_scenario(tmp_path: Path) -> None:
    command = [str(PROJECT / "bench" / "bench.py"), "--quick", "--scenario", "window", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary: Json = json.loads((tmp_path / "summary.json").read_text())
    assert {"witness_share", "witness_gap_vs_kvm", "vs_pause", "vs_kvm", "growth_1_to_cores", "faults_after_split",
            "faults_after_merge", "eintr_per_commit", "holes", "instructions"} <= summary.keys()  # fmt: skip
    assert summary["witness_share"].keys() == {"window"} and summary["witness_share"]["window"].keys() == {"1", "2"}
    assert summary["by_instructions"]["witness_share"]["window"].keys() == {"1"}
    assert summary["holes"]["fence"] == 0 and set(summary["eintr_per_commit"]["window"].values()) == {0}
    with (tmp_path / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["way"] for row in rows} >= {"kvm", "pause", "park", "fence"}
    assert {row["transaction"] for row in rows} == {"map", "unmap"}
    assert {path.name for path in tmp_path.iterdir()} == {"samples.csv", "results.json", "summary.json", "window.svg", "window.png"}
    assert "not measured" in done.stdout and "window, by instructions" in done.stdout
