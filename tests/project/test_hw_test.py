# SPDX-License-Identifier: GPL-2.0
"""`make hw-test`, on a machine that is one of ours: the test VM is \"this machine\" to it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import hw_test
import pytest
from building import make, make_kselftests
from debian import PROJECT
from runner import DEFAULT_KERNEL, VM, Outcome, Result

SCRIPT = PROJECT / "scripts" / "hw_test.py"
HOLDER = PROJECT / "tests" / "tools" / "holder.py"


@pytest.fixture(scope="module")
def machine() -> Iterator[VM]:
    """With KVM, without memslot."""
    make(PROJECT / "tests" / "guests")
    make_kselftests()
    with VM(DEFAULT_KERNEL, vendor="amd", kvm="") as vm:
        yield vm


# The VM's own process 1 keeps a virtual machine
AGENT = ("--besides", "1")

RUN = """
exec 2>&1
rm -f /tmp/report
"$@"
status=$?
test -e /sys/module/memslot && echo LEFT LOADED
cat /tmp/report
exit $status
"""


def run(vm: VM, *arguments: str) -> Result:
    module = VM(DEFAULT_KERNEL, module=True).module_path
    command = [str(SCRIPT), "--module", str(module), "--report", "/tmp/report", *AGENT, *arguments]
    return vm.run("/bin/sh", "-c", RUN, "sh", *command, timeout=300)


def test_report(machine: VM) -> None:
    result = run(machine, "--yes", "--quick")
    assert result.outcome is Outcome.OK, result.report()
    report = result.stdout[result.stdout.index("memslot on real hardware") :]
    names = [item.name for item in hw_test.items(quick=True)]
    assert [line.split(" (")[0] for line in report.splitlines() if line.startswith("passed")] == [
        f"passed   {name}" for name in (*names, "unloading")
    ]
    assert "failed" not in report and "LEFT" not in result.stdout
    for fact in ("kernel: 6.1", "model name: ", "kvm_amd.npt: ", "in a virtual machine itself: yes"):
        assert fact in report


@pytest.mark.parametrize(
    ("arguments", "why"),
    [((), "nobody is there to be asked"), (("--yes", "--module", "/nonexistent.ko"), "make hw-test")],
    ids=["unasked", "not built"],
)
def test_nothing_is_done(machine: VM, arguments: tuple[str, ...], why: str) -> None:
    result = run(machine, *arguments)
    assert result.status == 2 and why in result.stdout and "LEFT" not in result.stdout, result.report()


def test_refuses_beside_virtual_machines(machine: VM) -> None:
    module = VM(DEFAULT_KERNEL, module=True).module_path
    result = machine.run(HOLDER, json.dumps([[]]), SCRIPT, "--yes", "--module", module, *AGENT)
    assert result.status != 0 and "virtual machines are running" in result.output and "holder.py" in result.output, result.report()


def done(returncode: int = 0, stdout: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], returncode, stdout, "")


def test_judges() -> None:
    assert not hw_test.judge_kselftest(done(stdout="ok 1 a.b\nok 2 # SKIP no\n"))
    for bad in (done(stdout="ok 1 a.b\nnot ok 2 a.c\n"), done(), done(1, "ok 1 a.b\n")):
        assert hw_test.judge_kselftest(bad)
    assert not hw_test.judge_guests(done(stdout='{"holes": 0, "torn": 0}'))
    assert hw_test.judge_guests(done(stdout='{"holes": 0, "torn": 1}')) and hw_test.judge_guests(done(1, "{}"))
    assert not hw_test.judge_boots(done(stdout='{"outcome": "finished"}\n'))
    for text in ("", '{"outcome": "finished"}\n{"outcome": "died"}\n'):
        assert hw_test.judge_boots(done(stdout=text))


def test_kernels_complaint_is_a_failure() -> None:
    class Log(hw_test.KernelLog):
        def __init__(self) -> None:
            self.said: list[list[str]] = [[], ["WARNING: CPU: 0 PID: 1 at arch/x86/kvm/mmu/mmu.c:1"]]

        def read(self) -> list[str]:
            return self.said.pop(0)

    verdict = hw_test.run(hw_test.Item("it", ["true"], lambda _: ""), Log())
    assert verdict.outcome == "failed" and verdict.log
