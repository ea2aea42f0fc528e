# SPDX-License-Identifier: GPL-2.0
"""Guests that tell the truth: what vCPUs see while their memslots change under them.

tests/guests/churn counts holes (reads and fetches that find no slot) and torn
reads (old memory after new).  One by one through KVM there are plenty; this
shows that the guests would tell.  Batched there must be none at all.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import watched
from kernels import KERNELS, kernel
from runner import DEFAULT_KERNEL, VM, Outcome, Result

PROJECT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("BUILD", PROJECT / "build"))

Run = Callable[..., Result]
Report = dict[str, Any]

VCPUS = [1, 2, 4, 8]
TRANSACTIONS = 40  # of one scenario
TRANSACTIONS_OF_EACH = 16  # where one run does all scenarios


@dataclass(frozen=True)
class Counts:
    """What one commit of a scenario does to slots."""

    created: int = 0
    deleted: int = 0
    replaced: int = 0
    moved: int = 0


SCENARIOS = {
    "split-merge": Counts(created=2, deleted=2, replaced=2),
    "replace": Counts(replaced=4),
    "move": Counts(created=1, deleted=1, moved=1),
    "swap": Counts(moved=2),
    "resize": Counts(replaced=2),
}


@pytest.fixture(scope="module")
def programs() -> Path:
    """Where the programs are, built."""
    subprocess.run(["make", "--silent", "-C", PROJECT / "tests/guests", f"BUILD={BUILD}"], check=True)
    return BUILD / "guests"


def churning(programs: Path, run: Run) -> Callable[..., Report]:
    """Runs churn by a function that runs commands."""

    def churn(mode: str, scenario: str, vcpus: int, *more: str, transactions: int) -> Report:
        report: Report = json.loads(
            run(
                programs / "churn", "--mode", mode, "--scenario", scenario, "--vcpus", str(vcpus),
                "--transactions", str(transactions), *more,
            ).stdout
        )  # fmt: skip
        assert report["mode"] == mode
        assert len(report["loops"]) == len(report["versions"]) == report["vcpus"] == vcpus
        return report

    return churn


@pytest.fixture
def churn(programs: Path, run_in_vm: Run) -> Callable[..., Report]:
    return churning(programs, run_in_vm)


@pytest.fixture(scope="module")
def shadowing_vm(kernel_version: str) -> Iterator[VM]:
    """A VM whose KVM has no nested paging."""
    with VM(kernel_version, module=True, kvm_amd="npt=0") as machine:
        yield machine


@pytest.fixture
def shadowed_churn(programs: Path, shadowing_vm: VM) -> Iterator[Callable[..., Report]]:
    def run(*command: str | os.PathLike[str]) -> Result:
        result = shadowing_vm.run(*command)
        assert result.outcome is Outcome.OK, result.report()
        return result

    with watched(shadowing_vm):
        yield churning(programs, run)


# A fault that found no slot meets there what another vCPU has mapped since (tdp_mmu.c), without the module, too;
# and a warning ends the VM.
KVM_WARNS_IN_HOLES = {"7.3"}


@pytest.fixture
def holes_are_survived(kernel_version: str) -> None:
    """Skips what makes KVM itself warn."""
    if kernel_version in KVM_WARNS_IN_HOLES:
        pytest.skip(f"KVM of {kernel_version} itself warns when slots come while vCPUs look at their holes")


def assert_truth(report: Report) -> None:
    """Every vCPU got on, saw the changes, and nothing that it must not see."""
    bad = ("holes", "guest_holes", "errors", "shutdowns", "torn", "torn_across", "wrong", "stale", "nested_errors")
    assert {name: report[name] for name in bad} == dict.fromkeys(bad, 0)
    for scenario in report["scenarios"].values():
        # After every fourth transaction, churn lets all vCPUs visit the whole range
        least = scenario["transactions"] // 4
        assert min(scenario["loops"]) >= least
        assert min(scenario["versions"]) >= least
    assert report["emulated_reads"] > 0


@pytest.mark.parametrize("vcpus", VCPUS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_batched(churn: Callable[..., Report], scenario: str, vcpus: int) -> None:
    report = churn("batched", scenario, vcpus, transactions=TRANSACTIONS)
    assert_truth(report)
    # All of them cover what they take away: a fence is enough, and nobody leaves KVM_RUN for it
    assert report["fenced"] == TRANSACTIONS
    assert report["parked"] == report["interrupted"] == 0
    assert report["total_ns_fenced"] > 0
    for name, count in vars(SCENARIOS[scenario]).items():
        assert report[name] == count * TRANSACTIONS, name


@pytest.mark.every_kernel
@pytest.mark.parametrize("options", [(), ("--park",)], ids=["fenced", "parked"])
def test_batched_all_scenarios(churn: Callable[..., Report], options: tuple[str, ...]) -> None:
    report = churn("batched", "all", 2, *options, transactions=TRANSACTIONS_OF_EACH)
    assert_truth(report)
    assert report["parked" if options else "fenced"] == TRANSACTIONS_OF_EACH * len(SCENARIOS)


@pytest.mark.parametrize("vcpus", VCPUS)
def test_batched_and_parked(churn: Callable[..., Report], vcpus: int) -> None:
    report = churn("batched", "all", vcpus, "--park", transactions=TRANSACTIONS_OF_EACH)
    assert_truth(report)
    assert report["parked"] == report["park_requested"] == TRANSACTIONS_OF_EACH * len(SCENARIOS)
    assert report["fenced"] == 0
    assert report["interrupted"] > 0


@pytest.mark.parametrize("vcpus", [1, 4])
@pytest.mark.parametrize("nested", ["none", "shared"])
def test_shadow_paging(shadowed_churn: Callable[..., Report], vcpus: int, nested: str) -> None:
    report = shadowed_churn("batched", "all", vcpus, "--nested", nested, transactions=TRANSACTIONS_OF_EACH)
    assert_truth(report)
    # All of them drop or move slots
    assert report["parked"] == report["park_shadow_paging"] == TRANSACTIONS_OF_EACH * len(SCENARIOS)
    assert report["interrupted"] > 0


@pytest.mark.parametrize("vcpus", [1, 4])
@pytest.mark.parametrize("tables", ["shared", "own"])
def test_guests_in_guests(churn: Callable[..., Report], tables: str, vcpus: int) -> None:
    report = churn("batched", "all", vcpus, "--nested", tables, transactions=TRANSACTIONS_OF_EACH)
    assert_truth(report)
    for scenario in report["scenarios"].values():
        # They make every other pass, and see every fourth layout whole
        assert min(scenario["nested_loops"]) >= TRANSACTIONS_OF_EACH // 4
    if tables == "own":
        assert report["parked"] == report["park_nested"] == TRANSACTIONS_OF_EACH * len(SCENARIOS)
        assert report["interrupted"] > 0
    else:
        # Nothing is shadowed where the guests in the guests use the same tables
        assert report["fenced"] == TRANSACTIONS_OF_EACH * len(SCENARIOS)
        assert report["interrupted"] == 0


@pytest.mark.usefixtures("holes_are_survived")
def test_guests_in_guests_would_tell(churn: Callable[..., Report]) -> None:
    report = churn("one-by-one", "all", 4, "--nested", "own", transactions=TRANSACTIONS_OF_EACH)
    assert report["holes"] > 0
    assert report["errors"] > 0
    assert report["torn"] > 0
    assert report["wrong"] == report["stale"] == report["nested_errors"] == 0


@pytest.mark.parametrize("vcpus", [1, 4])
def test_first_nested_root_during_commits(programs: Path, run_in_vm: Run, vcpus: int) -> None:
    # A single vCPU seldom comes to its second pass between two commits
    vms = 40 if vcpus > 1 else 10
    report: Report = json.loads(run_in_vm(programs / "first_nested", str(vms), str(vcpus)).stdout)
    assert report["bad"] == 0
    assert report["nested_loops"] >= 2 * vms * vcpus
    # Commits before the first root, after it, and some that took it away
    assert report["park_uncovers"] >= vms
    assert report["park_nested"] > 0
    assert report["rootless"] > 0


@pytest.mark.parametrize("how", ["fenced", "parked"])
def test_many_vcpus(churn: Callable[..., Report], how: str) -> None:
    more = ["--park"] if how == "parked" else []
    report = churn("batched", "split-merge", 64, *more, transactions=4)
    assert_truth(report)
    assert report[how] == report["transactions"] == 4


def test_soak(churn: Callable[..., Report], vm: VM, pytestconfig: pytest.Config) -> None:
    """All of it, in random order, for as long as asked."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    print(f"seed {seed}")
    vm.find_leaks()  # that others left
    end = time.monotonic() + pytestconfig.getoption("--soak")
    while time.monotonic() < end:
        parks = chance.choice([False, True])
        transactions = chance.choice([20, 60, 200])
        scenario = chance.choice([*SCENARIOS, "all"])
        options = ["--park"] if parks else []
        report = churn("batched", scenario, chance.choice(VCPUS), *options, transactions=transactions)
        print(f"{scenario}, {report['vcpus']} vCPUs, {transactions} transactions, parked: {parks}")
        assert_truth(report)
        assert report["parked" if parks else "fenced"] == transactions * len(report["scenarios"])
        assert report["fenced" if parks else "parked"] == 0
    assert not vm.find_leaks()


@pytest.mark.usefixtures("holes_are_survived")
def test_one_by_one_has_holes(churn: Callable[..., Report]) -> None:
    report = churn("one-by-one", "all", 8, transactions=TRANSACTIONS_OF_EACH)
    # A read in a hole becomes MMIO, a fetch becomes an internal error
    assert report["holes"] > 1000
    assert report["errors"] > 1000
    assert report["torn"] > 0
    assert report["guest_holes"] == report["holes"]
    for name, scenario in report["scenarios"].items():
        assert scenario["holes"] + scenario["errors"] > 0, name
    # Broken as it is, at the end all see the last layout
    assert report["wrong"] == report["stale"] == 0


def test_userspace_pause_has_none(churn: Callable[..., Report]) -> None:
    report = churn("paused", "all", 4, transactions=TRANSACTIONS_OF_EACH)
    assert_truth(report)
    assert report["interrupted"] > 0


def test_bench_compares_like_with_like(programs: Path, run_in_vm: Run) -> None:
    """How much faster is for people to read (make demo): machines are noisy."""
    report: Report = json.loads(run_in_vm(programs / "slot_bench", "--rounds", "2").stdout)
    assert report["vcpus"] == 1
    assert report["three_changes"]["strategy"] == report["create_512"]["strategy"] == "fence"
    # Nothing takes the place of what is deleted, and KVM could nest
    assert report["delete_512"]["strategy"] == "park"
    for name in ("three_changes", "delete_512", "create_512"):
        assert report[name]["samples"] > 0
        assert report[name]["one_by_one_ns"] > 0 < report[name]["batched_ns"]


@pytest.mark.every_kernel
def test_one_change_costs_what_kvm_asks_for_it(programs: Path, kernel_version: str) -> None:
    """In instructions, so that no load on the machine matters: `make bench` shows them.

    A commit does all that KVM does, and raises the fence besides; what it saves is KVM's dropping of all
    translations where a slot goes.
    """
    if KERNELS[kernel_version].built_from:
        pytest.skip("a kernel that checks every access of the module makes it dear")
    with VM(kernel_version, module=True, counting=True) as counting_vm, watched(counting_vm) as machine:
        result = machine.run(programs / "slot_bench", "--vcpus", "0", "--other", "0", "--rounds", "20")
    assert result.outcome is Outcome.OK, result.report()
    report: Report = json.loads(result.stdout)
    single = [report[f"{name}_one"] for name in ("create", "move", "log", "unlog", "delete")]
    assert all(work["batched_ns"] < 1.25 * work["one_by_one_ns"] for work in single), single
    assert sum(work["batched_ns"] for work in single) < sum(work["one_by_one_ns"] for work in single), single
    assert report["three_changes"]["batched_ns"] < report["three_changes"]["one_by_one_ns"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--mode", "none"],
        ["--vcpus", "0"],
        ["--vcpus", "65"],
        ["--transactions", "1x"],
        ["--scenario", "none"],
        ["--nested", "maybe"],
        ["--mode", "paused", "--park"],
        ["--unknown"],
        ["word"],
    ],
    ids=" ".join,
)
def test_wrong_usage(programs: Path, arguments: list[str]) -> None:
    done = subprocess.run([programs / "churn", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "churn: " in done.stderr
    assert done.stdout == ""
