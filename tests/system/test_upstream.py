# SPDX-License-Identifier: GPL-2.0
"""Upstream's own KVM selftests, unmodified, under memslot-run.

What does not pass is run without memslot-run, in the same VM: if it fails or
skips by itself, too, it says nothing about memslot-run, and is skipped with its
own words.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from building import BUILD
from conftest import watched
from debian import PROJECT
from kernels import linux_source
from runner import VM, Outcome, Result

SOURCES = PROJECT / "tests" / "system" / "upstream"
MEMSLOT_RUN = PROJECT / "build" / "tools" / "memslot-run"
KSFT_SKIP = 4
TIMEOUT = 120
# memslot_perf_test gives its guest two seconds for an answer, alarm(2), which is chance where the machine is busy: what has
# ended so is run again, but for what is known to fail by itself.
KILLED_BY_ALARM = 128 + signal.SIGALRM
MOST_ALARMS = 20


@dataclass(frozen=True)
class Selftest:
    program: str  # as in tools/testing/selftests/kvm
    options: str = ""
    changes: int = 1  # that memslot-run must have seen, at least
    fails: str = ""  # why it may fail by itself
    warning: str = ""  # what KVM may say of it in the kernel log

    def __str__(self) -> str:
        return " ".join([Path(self.program).name, self.options]).strip()


# Where one ends by a time limit of its own, it is small enough to be far from it.
MEMORY = [
    Selftest("set_memory_region_test", changes=32000),
    # Its vCPUs look regions up in a tree that its main thread changes, without a lock, once per pass over their memory.
    # Where no translations are dropped, they pass over 4 MiB so fast that one in ten runs fails by that.
    Selftest("memslot_modification_stress_test", "-v 2 -b 64M -i 50", changes=100),
    *(Selftest("memslot_perf_test", f"-l 1 -s 64 -f {number} -e {number}", changes=128) for number in range(5)),
    Selftest("memslot_perf_test", "-l 1 -s 64 -f 5 -e 5", changes=64,
             fails="its guest has two seconds to touch 512 MiB"),
    Selftest("dirty_log_perf_test", "-v 2 -b 8M -i 2", changes=4),
    Selftest("dirty_log_perf_test", "-v 2 -b 8M -i 2 -x 16", changes=64),
    Selftest("kvm_page_table_test", "-v 2 -b 8M", changes=4),
    Selftest("demand_paging_test", "-v 2 -b 4M", changes=2),
]  # fmt: skip
NESTED = [
    Selftest("x86_64/svm_vmcall_test"),
    Selftest("x86_64/state_test"),
    Selftest("x86_64/smm_test", changes=2),
    Selftest("x86_64/svm_int_ctl_test"),
    Selftest("x86_64/svm_nested_shutdown_test"),
    Selftest("x86_64/hyperv_svm_test"),
    Selftest("x86_64/triple_fault_event_test"),
    Selftest("x86_64/svm_nested_soft_inject_test", fails="QEMU's TCG has no nRIP save"),
    Selftest("x86_64/nested_exceptions_test", fails="QEMU's TCG reports other error codes"),
]
# Without nested paging every commit that drops a slot parks.
SHADOWED = [
    # It deletes the slot of the guest's page tables.  If KVM is about to inject a fault then, 6.1 asks for a triple fault
    # because the guest's root is gone (mmu_check_root), puts the fault back, and warns that both are there.
    replace(MEMORY[0], warning=r"WARNING: .* at arch/x86/kvm/x86\.c:\d+ kvm_multiple_exception\+"),
    MEMORY[1],
    MEMORY[5],
    NESTED[2],
]

CASES = [("", test) for test in [*MEMORY, *NESTED]] + [("npt=0", test) for test in SHADOWED]
DOES_NOT_COMPILE = "dirty_log_test"


def make(*programs: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--silent", "-C", str(SOURCES), f"BUILD={BUILD}", f"TESTS={' '.join(programs)}"]
    command.append(f"LINUX_SOURCE={linux_source('6.1')}")
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    done = make(*dict.fromkeys(test.program for _, test in CASES))
    assert done.returncode == 0, done.stdout + done.stderr


class Machine:
    """A VM, and how the tests end in it."""

    def __init__(self, vm: VM) -> None:
        self.vm = vm

    def _command(self, test: Selftest) -> list[str]:
        return [str(BUILD / "upstream" / "kvm" / test.program), *test.options.split()]

    def _run(self, test: Selftest, *command: str | Path) -> Result:
        for _ in range(1 if test.fails else MOST_ALARMS):
            result = self.vm.run(*command, timeout=TIMEOUT)
            if result.status != KILLED_BY_ALARM:
                break
        return result

    def without(self, test: Selftest) -> Result:
        return self._run(test, *self._command(test))

    def under_memslot_run(self, test: Selftest) -> tuple[Result, dict[str, int]]:
        script = '"$0" --stats=/tmp/stats -- "$@" >&2; status=$?; cat /tmp/stats; exit $status'
        result = self._run(test, "/bin/sh", "-c", script, MEMSLOT_RUN, *self._command(test))
        return result, json.loads(result.stdout) if result.stdout else {}


@pytest.fixture(scope="module")
def machines(kernel_version: str, session_vm: VM) -> Iterator[dict[str, Machine]]:
    """By parameters of kvm_amd."""
    with VM(kernel_version, module=True, vendor="amd", kvm="npt=0") as shadowed:
        yield {"": Machine(session_vm), "npt=0": Machine(shadowed)}


@contextmanager
def bearing(vm: VM, warning: str) -> Iterator[None]:
    """KVM may warn of this, and of nothing else."""

    def panic_on_warn(value: int) -> None:
        result = vm.run("/bin/sh", "-c", f"echo {value} > /proc/sys/kernel/panic_on_warn")
        assert result.outcome is Outcome.OK, result.report()

    panic_on_warn(0)
    yield
    panic_on_warn(1)
    vm.complaints = [line for line in vm.complaints if not re.search(warning, line)]


@pytest.fixture
def machine(machines: dict[str, Machine], parameters: str, test: Selftest) -> Iterator[Machine]:
    vm = machines[parameters].vm
    with watched(vm), bearing(vm, test.warning) if test.warning else nullcontext():
        yield machines[parameters]


def skip_unless_it_passes(test: Selftest, result: Result) -> None:
    """By itself it has to pass, to be skipped by its own decision, or to fail for a known reason."""
    last_words = result.output.strip().splitlines()[-1:]
    if result.outcome is Outcome.OK:
        return
    if result.status == KSFT_SKIP:
        pytest.skip(f"without memslot-run: {last_words}")
    if test.fails and result.outcome is Outcome.FAILED:
        pytest.skip(f"fails without memslot-run, {test.fails}: {last_words}")
    pytest.fail(result.report(), pytrace=False)


@pytest.mark.parametrize(("parameters", "test"), CASES, ids=lambda value: str(value) or "default")
def test_under_memslot_run(machine: Machine, test: Selftest) -> None:
    judge(machine, test)


def judge(machine: Machine, test: Selftest) -> None:
    result, counted = machine.under_memslot_run(test)
    if result.outcome is not Outcome.OK:
        skip_unless_it_passes(test, machine.without(test))
    assert result.outcome is Outcome.OK, result.report()
    assert counted["changes"] >= test.changes
    assert counted["fenced"] + counted["parked"] == counted["commits"] > 0
    assert counted["failed"] == counted["lost"] == counted["passed"] == counted["vms_passed"] == 0


def test_dirty_log_test_compiles(machines: dict[str, Machine]) -> None:
    """The one of 6.1.192 does not; where it does, it is to be run as well."""
    done = make(DOES_NOT_COMPILE)
    if done.returncode:
        assert re.search(r"undefined reference to `TEST_ASSERT_EQ'", done.stderr), done.stderr
        pytest.skip("linux-source's copy uses TEST_ASSERT_EQ(), which its own library lacks")
    test = Selftest(DOES_NOT_COMPILE, "-i 4 -I 1", changes=2)
    with watched(machines[""].vm):
        judge(machines[""], test)
