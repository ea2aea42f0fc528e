# SPDX-License-Identifier: GPL-2.0
"""Fixtures for tests that need a VM with the module loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "vm"))

from kernels import KERNELS  # noqa: E402
from runner import DEFAULT_KERNEL, VM, Outcome, Result  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernel", choices=list(KERNELS), default=DEFAULT_KERNEL, help="kernel of the test VM")


@pytest.fixture(scope="session")
def session_vm(request: pytest.FixtureRequest) -> Iterator[VM]:
    """One VM for all tests, with KVM and the module loaded.  Tests take vm instead, which watches the kernel log."""
    with VM(request.config.getoption("--kernel"), module=True) as machine:
        yield machine


@pytest.fixture
def vm(session_vm: VM) -> Iterator[VM]:
    """The VM.  A test during which its kernel log gets a warning fails, whatever else it does."""
    session_vm.start()
    session_vm.complaints.clear()
    boots = session_vm.boots
    yield session_vm
    # What the kernel says a moment after the test's last command still belongs to that test.
    after = session_vm.run("true")
    if session_vm.complaints:
        pytest.fail("the VM's kernel log has warnings:\n" + "\n".join(session_vm.complaints), pytrace=False)
    if after.outcome is not Outcome.OK or session_vm.boots != boots:
        pytest.fail(f"the VM was lost during the test\n{after.report()}", pytrace=False)


@pytest.fixture
def run_in_vm(vm: VM) -> Callable[..., Result]:
    """Runs a command in the VM, with VM.run()'s arguments; the test fails with its output if the command does."""

    def run(*command: str | os.PathLike[str], **options: object) -> Result:
        result = vm.run(*command, **options)  # type: ignore[arg-type]
        if result.outcome is not Outcome.OK:
            pytest.fail(result.report(), pytrace=False)
        return result

    return run
