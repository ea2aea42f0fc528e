# SPDX-License-Identifier: GPL-2.0
"""guest_bench: what it counts is exact, on whatever machine; how long things take is for people to read (`make bench`)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from building import BUILD, make
from conftest import watched
from debian import PROJECT
from kernels import KERNELS
from runner import VM, Outcome, Result

sys.path.insert(0, str(PROJECT / "bench"))

from figures import figures_of  # noqa: E402

Run = Callable[..., Result]
Json = dict[str, Any]

VCPUS = 2
SHORT = ["--vcpus", str(VCPUS), "--seconds", "0", "--block", "0"]
OTHER_PAGES = 256  # of guest_bench --other 1


@pytest.fixture(scope="module")
def programs() -> Path:
    """Where the programs are, built."""
    make(PROJECT / "bench")
    return BUILD / "bench"


@pytest.fixture
def guest_bench(programs: Path, run_in_vm: Run) -> Callable[..., Json]:
    def run(scenario: str, *more: str) -> Json:
        report: Json = json.loads(
            run_in_vm(programs / "guest_bench", "--scenario", scenario, *SHORT, "--other", "1", *more).stdout
        )
        assert report["vcpus"] == VCPUS
        return report

    return run


# Grace periods, ranges that are zapped, and page faults of the vCPU that touches what changes: of one commit; and the calls
# of KVM's ioctl that do the same, with how many of them delete
EXPECTED = {
    "split-merge": {"split": (1, 0, 0, 4, 1), "merge": (1, 0, 0, 4, 3)},
    "ro-flip": {"split": (1, 1, 1, 4, 1), "merge": (1, 1, 1, 4, 3)},
    "window": {"map": (1, 0, 0, 1, 0), "unmap": (2, 1, 0, 1, 1)},
    "grow": {"grow": (1, 0, 0, 2, 1), "shrink": (2, 1, 0, 2, 1)},
    "layout": {"three of 1000": (1, 3, 1, 6, 3), "three of 4000": (1, 3, 0, 6, 3)},
    "log": {"log": (1, 0, 0, 17, 0), "unlog": (1, 0, 0, 17, 0)},
    "banks": {"switch": (1, 1, 16, 2, 1)},
    "plug": {
        "create 8": (1, 0, 0, 8, 0), "delete 8": (2, 1, 0, 8, 8), "create 64": (1, 0, 0, 64, 0), "delete 64": (2, 1, 0, 64, 64),
        "create 512": (1, 0, 0, 512, 0), "delete 512": (2, 1, 0, 512, 512),
    },
}


@pytest.mark.parametrize("scenario", EXPECTED)
def test_exact_counts(guest_bench: Callable[..., Json], scenario: str) -> None:
    ways = guest_bench(scenario)["ways"]
    assert ways.keys() - {"kvm-zap", "replace-all"} == {"kvm", "pause", "park", "fence"}
    assert ways["fence"]["parked"] == ways["fence"]["eintr"] == 0
    assert ways["park"]["parked"] == ways["park"]["transactions"] > 0
    assert ways["fence"]["holes"] == ways["park"]["holes"] == ways["pause"]["holes"] == 0
    for kind, (grace_periods, ranges, faults, calls, deletes) in EXPECTED[scenario].items():
        by_way = {way: seen["counted"][kind] for way, seen in ways.items()}
        number = by_way["fence"]["transactions"]

        def each(way: str, name: str) -> float:
            value: float = by_way[way][name] / number
            return value

        fence = {name: each("fence", name) for name in ("calls", "grace_periods", "zap_alls", "zapped_ranges", "eintr", "holes")}
        assert fence == {"calls": 1, "grace_periods": grace_periods, "zap_alls": 0, "zapped_ranges": ranges, "eintr": 0, "holes": 0}
        # Where the vCPU that touches has none of the workload's memory, all are counted as others
        assert each("fence", "faults") == faults
        # Memory whose log begins is protected; whoever writes to it faults once for each page
        assert each("fence", "faults_elsewhere") == (OTHER_PAGES if kind == "log" else 0)
        assert each("park", "grace_periods") == 1
        assert each("park", "eintr") >= VCPUS == each("pause", "eintr")
        for way in ("kvm", "pause"):
            assert (each(way, "calls"), each(way, "deletes"), each(way, "zap_alls")) == (calls, deletes, deletes)
            assert each(way, "grace_periods") == calls + deletes
            # With KVM_X86_QUIRK_SLOT_ZAP_ALL, which is on by default, all have to be mapped again
            if deletes:
                assert each(way, "faults_elsewhere") >= OTHER_PAGES
        # KVM kicks all vCPUs for each publication that ends a change
        assert each("fence", "kicks") == VCPUS
        assert each("kvm", "kicks") == (calls + deletes) * VCPUS
        assert each("pause", "kicks") == each("kvm", "kicks") + VCPUS


def test_one_by_one_leaves_holes(guest_bench: Callable[..., Json]) -> None:
    """Else it would say nothing that the other ways have none.  Whether a vCPU meets one is chance: on a busy machine it may not run."""
    for _ in range(20):
        report = guest_bench("split-merge", "--ways", "kvm,fence", "--rounds", "5")
        assert report["ways"]["fence"]["holes"] == 0
        if report["ways"]["kvm"]["holes"]:
            break
    assert report["ways"]["kvm"]["holes"] > 0
    assert figures_of(report)["list"]["counted"]["merge"]["grace_periods"] == 3 + 1


def test_samples_are_of_what_was_asked_for(guest_bench: Callable[..., Json]) -> None:
    report = guest_bench("window", "--ways", "fence", "--rounds", "3")
    assert report["ways"].keys() == {"fence"}
    seen = report["ways"]["fence"]
    assert {kind: len(ns) for kind, ns in seen["ns"].items()} == {"map": 3, "unmap": 3}
    # A map and an unmap with all vCPUs looking on, and the timed ones
    assert seen["transactions"] == seen["fenced"] == 3 * 4
    for blocks in (seen["looking_on"], seen["undisturbed"]):
        assert len(blocks["touches"]) == len(blocks["ns"]) == len(blocks["longest_ticks"]) == 3
        assert all(0 < ticks / report["ticks_per_ns"] for ticks in blocks["longest_ticks"])
        # Each touch is a gap's end, and those after the block are counted, too
        assert sum(blocks["gaps"]) >= sum(blocks["touches"]) > 0
    # There is nothing to touch that is there before and after
    assert seen["touching"]["touches"] == []


def test_nothing_but_times(guest_bench: Callable[..., Json]) -> None:
    seen = guest_bench("window", "--ways", "fence", "--timed")["ways"]["fence"]
    assert seen["transactions"] == 2 and seen["ns"].keys() == {"map", "unmap"}
    assert seen["counted"] == {} and seen["looking_on"]["touches"] == []


@pytest.mark.parametrize("huge", [[], ["--huge"]], ids=["4 KiB", "2 MiB"])
def test_whole_guest_is_not_faulted_in_again(guest_bench: Callable[..., Json], huge: list[str]) -> None:
    report = guest_bench("split-merge", "--whole", "--ways", "fence", *huge)
    assert report["pages_2m"] == (report["guest_mib"] // 2 if huge else 0)
    counted = report["ways"]["fence"]["counted"]
    assert {kind: counts["faults"] for kind, counts in counted.items()} == {"split": 0, "merge": 0}


@pytest.mark.every_kernel
def test_one_change_costs_what_kvm_asks_for_it(programs: Path, kernel_version: str) -> None:
    """In instructions, so that no load on the machine matters: `make bench` shows them.

    A commit of one change does all that KVM does for it. It copies a larger request and reply, plans, and raises the fence
    besides, some 3 thousand instructions whatever the change; but each grace period of KVM's own takes SRCU's worker, and
    costs more than twice as much as finding a moment without readers. Of three changes it saves two thirds of that, and
    dropping all translations.
    """
    if KERNELS[kernel_version].built_from:
        pytest.skip("a kernel that checks every access of the module makes it dear")
    found: dict[str, Json] = {}
    with VM(kernel_version, module=True, counting=True) as counting_vm, watched(counting_vm) as machine:
        for scenario in ("single", "split-merge"):
            words = ["--scenario", scenario, "--vcpus", "0", "--seconds", "0", "--block", "0", "--rounds", "20"]
            result = machine.run(programs / "guest_bench", *words, "--ways", "kvm,fence")
            assert result.outcome is Outcome.OK, result.report()
            report = json.loads(result.stdout)
            assert report["ways"]["fence"]["fenced"] == report["ways"]["fence"]["transactions"]
            figures = figures_of(report)
            found |= {
                kind: {way: figures[way]["times"][kind]["median_ns"] for way in ("kvm", "fence")} for kind in figures["fence"]["times"]
            }
    single = [found[kind] for kind in ("create", "move", "log", "unlog", "delete")]
    assert all(work["fence"] < work["kvm"] for work in single), single
    for kind in ("split", "merge"):
        assert found[kind]["fence"] < found[kind]["kvm"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--scenario", "none"],
        ["--scenario", "grow", "--ways", ""],
        ["--scenario", "grow", "--ways", "kvm,magic"],
        ["--scenario", "grow", "--vcpus", "65"],
        ["--scenario", "grow", "--guest", "x"],
        ["--scenario", "grow", "--whole"],
        ["--scenario", "grow", "word"],
    ],
    ids=" ".join,
)
def test_wrong_usage(programs: Path, arguments: list[str]) -> None:
    done = subprocess.run([programs / "guest_bench", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "guest_bench: " in done.stderr
    assert done.stdout == ""


def test_a_kernel_without_the_quirk_says_so(programs: Path, vm: VM, kernel_version: str) -> None:
    if kernel_version != "6.1":
        pytest.skip("this KVM has KVM_X86_QUIRK_SLOT_ZAP_ALL")
    result = vm.run(programs / "guest_bench", "--scenario", "grow", "--ways", "kvm-zap")
    assert (result.status, result.stdout) == (2, "")
    assert "this KVM has no KVM_X86_QUIRK_SLOT_ZAP_ALL" in result.stderr
