# SPDX-License-Identifier: GPL-2.0
"""Each test of tests/kselftest is an item of its own.

A program runs once, in a VM, and serves all of its items.  An item whose test
has no result fails: the program ended early, or the VM was lost.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from building import BUILD, make_kselftests
from kernel_log import COMPLAINT
from runner import VM, Outcome, Result

PROGRAM_TIMEOUT = 300  # seconds on a quiet machine; each test has its own limit of 30

# Parameters of KVM.  Without nested paging every commit that drops a slot parks;
# without nested virtualization none has to.
configured = pytest.mark.configured(amd=["npt=0", "nested=0"])

RUN = re.compile(r"#  RUN +(\S+) \.\.\.")
RESULT = re.compile(r"(?P<bad>not )?ok (?P<number>\d+) (?:# SKIP (?P<skipped>.*)|(?P<name>\S+))")
LOG_MARKER = re.compile(r"memslot-kselftest: +RUN +(\S+) \.\.\.")


@functools.cache
def list_of_programs() -> dict[str, list[str]]:
    """What each program says its tests are, in the order of a run."""
    return {program: subprocess.run([BUILD / "kselftest" / program, "--list"], check=True, stdout=subprocess.PIPE,
                                    text=True).stdout.split() for program in make_kselftests()}  # fmt: skip


@dataclass
class Case:
    """One test of a run."""

    passed: bool | None = None  # None: no result
    skipped: str | None = None  # the reason
    output: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)  # of the kernel, while it ran


def read_output(cases: dict[str, Case], output: str) -> None:
    """Fills in what the program said of each test."""
    names = list(cases)
    current: str | None = None
    for line in output.splitlines():
        if run := RUN.match(line):
            current = run[1]
            assert current in cases, f"{current} ran, but --list does not have it"
        if current is not None:
            cases[current].output.append(line)
        if result := RESULT.fullmatch(line):
            name = names[int(result["number"]) - 1]
            assert name == current and result["name"] in (None, name), f"{line!r} came during {current}"
            cases[name].passed = not result["bad"]
            cases[name].skipped = result["skipped"]


def read_log(cases: dict[str, Case], log: list[str]) -> None:
    """Finds the tests during which the kernel complained; what came before the first is the first one's."""
    current = next(iter(cases))
    for line in log:
        if marker := LOG_MARKER.search(line):
            current = marker[1]
        elif COMPLAINT.search(line):
            cases[current].complaints.append(line)


class Machine:
    """A VM and what its runs of the programs have told."""

    def __init__(self, vm: VM) -> None:
        self.vm = vm
        self.runs: dict[str, tuple[dict[str, Case], Result]] = {}
        self.leaks: dict[str, str | None] = {}  # what VM.find_leaks() said after a program
        self.boots = 0  # of the VM, when leaks were forgotten last

    def run(self, program: str) -> tuple[dict[str, Case], Result]:
        if program not in self.runs:
            cases = {name: Case() for name in list_of_programs()[program]}
            self.vm.start()
            self.forget_leaks()
            # in one stream, so that messages are where they belong
            result = self.vm.run(
                "/bin/sh", "-c", 'exec "$0" 2>&1', BUILD / "kselftest" / program, timeout=PROGRAM_TIMEOUT
            )
            read_output(cases, result.output)
            log = result.kernel_log
            if result.outcome is not Outcome.LOST:
                # What the kernel says a moment later still belongs to the last test.
                log = log + self.vm.run("true").kernel_log
            read_log(cases, log)
            self.leaks[program] = self.vm.find_leaks() if result.outcome is not Outcome.LOST else "the VM was lost"
            self.vm.complaints.clear()
            self.runs[program] = cases, result
        return self.runs[program]

    def forget_leaks(self) -> None:
        """What the kernel lost before the first program ran is not a program's doing."""
        if self.boots != self.vm.boots:
            self.vm.find_leaks()
            self.boots = self.vm.boots


@pytest.fixture(scope="module")
def machine(session_vm: VM) -> Machine:
    """The VM of the session, where KVM has no parameters that matter."""
    return Machine(session_vm)


@pytest.fixture(scope="module")
def configured_machine(kernel_version: str, vendor: str, kvm: str) -> Iterator[Machine]:
    """A VM of its own."""
    with VM(kernel_version, module=True, vendor=vendor, kvm=kvm) as vm:
        yield Machine(vm)


# The main ones: what vCPUs see, and their dirty logs.
MAIN = {"running", "dirty"}
# What may differ with the parameters of Intel's KVM.
DEPENDENT = {"probe", "running", "vcpus", "dirty", "uncover"}


def marks_of(program: str) -> list[pytest.MarkDecorator]:
    # entries needs a KVM that has slots of its own to be whole: see test_kselftest_without_more
    vendors = pytest.mark.any_vendor if program == "entries" else pytest.mark.every_vendor
    marks = [pytest.mark.every_kernel, vendors]
    return [*marks, pytest.mark.every_machine] if program in MAIN else marks


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test of all programs; or of some, where fewer matter."""
    if "program" in metafunc.fixturenames:
        programs = PROGRAMS.get(metafunc.function)
        tests = [
            pytest.param(program, name, marks=marks_of(program))
            for program, names in list_of_programs().items()
            for name in names
            if programs is None or program in programs
        ]
        metafunc.parametrize(("program", "name"), tests)


@pytest.mark.races
@pytest.mark.by_parameters
def test_kselftest(machine: Machine, program: str, name: str) -> None:
    judge(machine, program, name)


@configured
def test_kselftest_configured(configured_machine: Machine, program: str, name: str) -> None:
    judge(configured_machine, program, name)


@pytest.mark.any_vendor
@pytest.mark.configured(intel=["ept=0", "pml=0", "eptad=0", "kvm.tdp_mmu=N", "unrestricted_guest=0", "nested=0"])
def test_kselftest_without(configured_machine: Machine, program: str, name: str) -> None:
    """Without one of the features that Intel's processors have."""
    judge(configured_machine, program, name)


# Each boot of that emulator costs as much as these tests.


@pytest.mark.every_vendor
@pytest.mark.configured(intel=["ept=0"])
def test_kselftest_without_ept(configured_machine: Machine, program: str, name: str) -> None:
    judge(configured_machine, program, name)


@pytest.mark.every_vendor
@pytest.mark.configured(intel=["pml=0", "eptad=0"])
def test_kselftest_without_logs_of_processors(configured_machine: Machine, program: str, name: str) -> None:
    """Without accessed and dirty bits KVM does not use PML, either, and write-protects pages instead."""
    judge(configured_machine, program, name)


@pytest.mark.every_vendor
@pytest.mark.configured(intel=["kvm.tdp_mmu=N unrestricted_guest=0 nested=0"])
def test_kselftest_without_more(configured_machine: Machine, program: str, name: str) -> None:
    """Where guests are not unrestricted, KVM has slots of its own."""
    judge(configured_machine, program, name)


PROGRAMS = {
    test_kselftest_without: DEPENDENT,
    test_kselftest_without_ept: {"running"},
    test_kselftest_without_logs_of_processors: {"dirty"},
    test_kselftest_without_more: {"running", "uncover", "entries"},
}


COUNT_FULL_LOGS = """
cd /sys/kernel/tracing
echo > trace && echo 1 > events/kvm/kvm_pml_full/enable || exit
"$0" "dirty.cleared_by_get.$1" >&2
status=$?
echo 0 > events/kvm/kvm_pml_full/enable
grep -c kvm_pml_full: trace
exit $status
"""


@pytest.mark.any_vendor
@pytest.mark.parametrize(
    "name",
    [
        "handed_back_of_more_pages_than_a_processor_logs",
        "handed_back_while_vcpus_write_many_pages",
        "moved_while_vcpus_write_many_pages",
    ],
)
def test_processors_logs_were_full(vm: VM, vendor: str, name: str) -> None:
    """That test is about something: Intel's processors left the guest because of it, and AMD's have no such log."""
    result = vm.run("/bin/sh", "-c", COUNT_FULL_LOGS, BUILD / "kselftest" / "dirty", name)
    assert result.outcome is Outcome.OK, result.report()
    assert (int(result.stdout) > 0) == (vendor == "intel"), result.report()


def judge(machine: Machine, program: str, name: str) -> None:
    """Passes, fails or skips as the test did."""
    cases, result = machine.run(program)
    case = cases[name]
    said = "\n".join(case.output)
    if case.passed is None:
        when = f"while it ran:\n{said}\n" if case.output else "before it ran:\n"
        pytest.fail(f"{name} has no result: {program} ended {when}{result.report()}", pytrace=False)
    if not case.passed:
        pytest.fail(said, pytrace=False)
    if case.complaints:
        pytest.fail("the VM's kernel log has warnings:\n" + "\n".join(case.complaints), pytrace=False)
    if case.skipped is not None:
        pytest.skip(case.skipped)


def test_nothing_leaks(machine: Machine) -> None:
    judge_leaks(machine)


@configured
def test_nothing_leaks_configured(configured_machine: Machine) -> None:
    judge_leaks(configured_machine)


def judge_leaks(machine: Machine) -> None:
    """Fails with what any of the programs has made the kernel lose."""
    for program in list_of_programs():
        machine.run(program)
    if None in machine.leaks.values():
        pytest.skip("this kernel has no kmemleak: make test-debug builds one that has")
    leaks = [f"after {program}:\n{text}" for program, text in machine.leaks.items() if text]
    if leaks:
        pytest.fail("\n".join(leaks), pytrace=False)
