# SPDX-License-Identifier: GPL-2.0
"""Guests that tell the truth: what vCPUs see while their memslots change under them.

tests/guests/churn counts holes (reads and fetches that find no slot) and torn
reads (old memory after new).  One by one through KVM there are plenty; this
shows that the guests would tell.  Batched there must be none at all.
"""

from __future__ import annotations

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
from building import BUILD, make, make_module
from conftest import watched
from debian import PROJECT
from runner import DEFAULT_KERNEL, VM, Outcome, Result


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
    grace_periods: int = 1


SCENARIOS = {
    "split-merge": Counts(created=2, deleted=2, replaced=2),
    "replace": Counts(replaced=4),
    "move": Counts(created=1, deleted=1, moved=1),
    "swap": Counts(moved=2),
    "resize": Counts(replaced=2),
    # three ranges lose their slot, and next time one does
    "uncover": Counts(created=1, deleted=1, replaced=2, grace_periods=2),
}


@pytest.fixture(scope="module")
def programs() -> Path:
    """Where the programs are, built."""
    make(PROJECT / "tests/guests")
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
def shadowing_vm(kernel_version: str, vendor: str, kvm: str) -> Iterator[VM]:
    """A VM whose KVM has no nested paging."""
    with VM(kernel_version, module=True, vendor=vendor, kvm=kvm) as machine:
        yield machine


@pytest.fixture
def shadowed_churn(programs: Path, shadowing_vm: VM) -> Iterator[Callable[..., Report]]:
    def run(*command: str | os.PathLike[str]) -> Result:
        result = shadowing_vm.run(*command)
        assert result.outcome is Outcome.OK, result.report()
        return result

    with watched(shadowing_vm):
        yield churning(programs, run)


# The exit status of a program where KVM cannot do what is asked for
NOT_IN_THIS_KVM = 77

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


@pytest.mark.races
@pytest.mark.any_vendor
@pytest.mark.parametrize("vcpus", VCPUS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_batched(churn: Callable[..., Report], scenario: str, vcpus: int) -> None:
    report = churn("batched", scenario, vcpus, transactions=TRANSACTIONS)
    assert_truth(report)
    # Nobody leaves KVM_RUN
    assert report["fenced"] == TRANSACTIONS
    assert report["parked"] == report["interrupted"] == 0
    assert report["total_ns_fenced"] > 0
    for name, count in vars(SCENARIOS[scenario]).items():
        assert report[name] == count * TRANSACTIONS, name
    assert report["tombstones"] == (2 * TRANSACTIONS if scenario == "uncover" else 0)


@pytest.mark.races
@pytest.mark.every_kernel
@pytest.mark.every_vendor
@pytest.mark.parametrize("options", [(), ("--park",)], ids=["fenced", "parked"])
def test_batched_all_scenarios(churn: Callable[..., Report], options: tuple[str, ...]) -> None:
    report = churn("batched", "all", 2, *options, transactions=TRANSACTIONS_OF_EACH)
    assert_truth(report)
    assert report["parked" if options else "fenced"] == TRANSACTIONS_OF_EACH * len(SCENARIOS)


@pytest.mark.races
@pytest.mark.any_vendor
@pytest.mark.parametrize("vcpus", VCPUS)
def test_batched_and_parked(churn: Callable[..., Report], vcpus: int) -> None:
    report = churn("batched", "all", vcpus, "--park", transactions=TRANSACTIONS_OF_EACH)
    assert_truth(report)
    assert report["parked"] == report["park_requested"] == TRANSACTIONS_OF_EACH * len(SCENARIOS)
    assert report["fenced"] == 0
    assert report["grace_periods"] == report["transactions"]
    assert report["tombstones"] == 0
    assert report["interrupted"] > 0


@pytest.mark.races
@pytest.mark.any_vendor
@pytest.mark.configured(amd=["npt=0"], intel=["ept=0"])
@pytest.mark.parametrize("vcpus", [1, 4])
@pytest.mark.parametrize("nested", ["none", "shared"])
def test_shadow_paging(shadowed_churn: Callable[..., Report], vcpus: int, nested: str) -> None:
    report = shadowed_churn("batched", "all", vcpus, "--nested", nested, transactions=TRANSACTIONS_OF_EACH)
    assert_truth(report)
    # All of them drop or move slots
    assert report["parked"] == report["park_shadow_paging"] == TRANSACTIONS_OF_EACH * len(SCENARIOS)
    assert report["interrupted"] > 0


@pytest.mark.races
@pytest.mark.every_vendor
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


@pytest.mark.any_vendor
@pytest.mark.usefixtures("holes_are_survived")
def test_guests_in_guests_would_tell(churn: Callable[..., Report]) -> None:
    report = churn("one-by-one", "all", 4, "--nested", "own", transactions=TRANSACTIONS_OF_EACH)
    assert report["holes"] > 0
    assert report["errors"] > 0
    assert report["torn"] > 0
    assert report["wrong"] == report["stale"] == report["nested_errors"] == 0


@pytest.mark.any_vendor
@pytest.mark.configured(amd=["nested=0"], intel=["nested=0"])
def test_guests_in_guests_need_nested(programs: Path, vm: VM) -> None:
    result = vm.run(programs / "churn", "--nested", "shared", "--vcpus", "1", "--transactions", "4")
    assert result.outcome is Outcome.FAILED and "this KVM cannot nest" in result.stderr, result.report()


def first_nested(programs: Path, vm: VM, *arguments: str, vms: int, vcpus: int) -> Report:
    """Races many VMs, each with its first nested root, against commits that take the root's memory away."""
    result = vm.run(programs / "first_nested", *arguments, str(vms), str(vcpus))
    if result.status == NOT_IN_THIS_KVM:
        pytest.skip(result.stderr.strip())
    assert result.outcome is Outcome.OK, result.report()
    report: Report = json.loads(result.stdout)
    print(f"first_nested {' '.join(arguments)}: the race was run {report['late_roots']} times in {report['vms']} VMs")
    return report


def assert_race_was_run(report: Report, vms: int, vcpus: int) -> None:
    assert report["bad"] == 0
    assert report["nested_loops"] >= 2 * vms * vcpus
    # Commits before the first root, some that took it away, and some after it
    assert report["tombstoned"] >= vms
    assert report["rootless"] > 0
    assert report["parked"] == report["park_nested"] > 0
    # A root that was found visible before a commit and allocated after it
    assert report["late_roots"] > 0


@pytest.mark.races
@pytest.mark.every_kernel
@pytest.mark.any_vendor
@pytest.mark.by_parameters
@pytest.mark.parametrize("removal", [pytest.param("delete", marks=pytest.mark.every_machine), "shrink", "move"])
def test_first_nested_root_during_commits(programs: Path, vm: VM, removal: str) -> None:
    assert_race_was_run(first_nested(programs, vm, removal, vms=8, vcpus=4), vms=8, vcpus=4)


# Not on Intel's, whose emulator runs processors by turns: in four minutes of its time a single vCPU never raced
def test_first_nested_root_of_one_vcpu(programs: Path, vm: VM) -> None:
    assert_race_was_run(first_nested(programs, vm, "delete", vms=5, vcpus=1), vms=5, vcpus=1)


@pytest.mark.every_kernel
@pytest.mark.any_vendor
def test_first_nested_root_where_kvm_zaps_slots_only(programs: Path, vm: VM) -> None:
    assert_race_was_run(first_nested(programs, vm, "shrink", "--zap-slots", vms=8, vcpus=4), vms=8, vcpus=4)


def test_first_nested_root_needs_tombstones(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them KVM looks up a slot that is gone, which the host does not survive: so the race is a real one."""
    needed = "return plan->nr_uncovered && can_nest();"
    edited = []

    def without_tombstones(source: str) -> str:
        edited.append(needed in source)
        return source.replace(needed, "return false;")

    done = make_module(tmp_path, DEFAULT_KERNEL, edit=without_tombstones)
    assert done.returncode == 0, done.stderr
    assert sum(edited) == 1
    # where the VM finds it, too: its /tmp is its own
    module = BUILD / "test" / "without_tombstones.ko"
    module.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(tmp_path / "build" / "memslot.ko", module)
    monkeypatch.setattr(VM, "module_path", module)
    with VM(DEFAULT_KERNEL, module=True) as machine:
        result = machine.run(programs / "first_nested", "delete", "400", "4")
    assert result.outcome is Outcome.LOST, result.report()
    assert "kvm_slot_page_track_add_page" in result.console, result.report()


@pytest.mark.races
@pytest.mark.any_vendor
@pytest.mark.parametrize("how", ["fenced", "parked"])
def test_many_vcpus(churn: Callable[..., Report], how: str) -> None:
    more = ["--park"] if how == "parked" else []
    report = churn("batched", "split-merge", 64, *more, transactions=4)
    assert_truth(report)
    assert report[how] == report["transactions"] == 4


@pytest.mark.races
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


@pytest.mark.every_vendor
@pytest.mark.usefixtures("holes_are_survived")
def test_one_by_one_has_holes(churn: Callable[..., Report], vendor: str) -> None:
    # The emulator of Intel's processors runs them by turns
    vcpus, least = (2, 0) if vendor == "intel" else (8, 1000)
    report = churn("one-by-one", "all", vcpus, transactions=TRANSACTIONS_OF_EACH)
    # A read in a hole becomes MMIO, a fetch becomes an internal error
    assert report["holes"] > least
    assert report["errors"] > least
    assert report["torn"] > 0
    assert report["guest_holes"] == report["holes"]
    for name, scenario in report["scenarios"].items():
        assert scenario["holes"] + scenario["errors"] > 0, name
    # Broken as it is, at the end all see the last layout
    assert report["wrong"] == report["stale"] == 0


@pytest.mark.any_vendor
def test_userspace_pause_has_none(churn: Callable[..., Report]) -> None:
    report = churn("paused", "all", 4, transactions=TRANSACTIONS_OF_EACH)
    assert_truth(report)
    assert report["interrupted"] > 0


@pytest.mark.any_vendor
def test_churn_by_time(churn: Callable[..., Report]) -> None:
    report = churn("batched", "swap", 2, "--milliseconds", "1", transactions=1)
    assert_truth(report)
    # At least until all vCPUs get to visit the newest layout
    assert report["transactions"] >= 4 and report["transactions"] % 4 == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--mode", "none"],
        ["--vcpus", "0"],
        ["--vcpus", "65"],
        ["--transactions", "1x"],
        ["--milliseconds", "0"],
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
