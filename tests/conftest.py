# SPDX-License-Identifier: GPL-2.0
"""Fixtures for tests that need a VM with the module loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "vm"))

from kernels import KERNELS  # noqa: E402
from runner import DEFAULT_KERNEL, VM, Outcome, Result  # noqa: E402


def duration(text: str) -> float:
    """Seconds: 90s, 30m, 2h."""
    return float(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]


def pytest_addoption(parser: pytest.Parser) -> None:
    def add(option: str, text: str) -> None:
        parser.addoption(option, choices=list(KERNELS), action="append", default=[], help=text)

    add("--kernel", f"kernel of the test VM, may be given several times (default: {DEFAULT_KERNEL})")
    add("--brief-kernel", "the same, but for the tests only that are marked every_kernel")
    parser.addoption("--all", action="store_true", help="every machine that QEMU can be run as; takes the better part of an hour")
    parser.addoption("--soak", type=duration, default="10s", help="how long test_soak lasts; default: %(default)s")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "every_kernel: runs on the kernels of --brief-kernel, too")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What needs a VM runs on each kernel that is asked for, and one kernel after the other."""
    if "kernel_version" not in metafunc.fixturenames:
        return
    versions: list[str] = metafunc.config.getoption("--kernel") or [DEFAULT_KERNEL]
    if metafunc.definition.get_closest_marker("every_kernel"):
        versions = versions + metafunc.config.getoption("--brief-kernel")
    metafunc.parametrize("kernel_version", list(dict.fromkeys(versions)), indirect=True, scope="session")


@pytest.fixture(scope="session")
def kernel_version(request: pytest.FixtureRequest) -> str:
    """The kernel of the test VM."""
    version: str = request.param
    return version


@pytest.fixture(scope="session")
def session_vm(kernel_version: str) -> Iterator[VM]:
    """One VM for all tests, with KVM and the module loaded.  Tests take vm instead, which watches the kernel log."""
    with VM(kernel_version, module=True) as machine:
        yield machine


@contextmanager
def watched(machine: VM) -> Iterator[VM]:
    """A test during which a VM's kernel log gets a warning fails, whatever else it does."""
    machine.start()
    machine.complaints.clear()
    boots = machine.boots
    yield machine
    # What the kernel says a moment after the test's last command still belongs to that test.
    after = machine.run("true")
    if machine.complaints:
        pytest.fail("the VM's kernel log has warnings:\n" + "\n".join(machine.complaints), pytrace=False)
    if after.outcome is not Outcome.OK or machine.boots != boots:
        pytest.fail(f"the VM was lost during the test\n{after.report()}", pytrace=False)


@pytest.fixture
def vm(session_vm: VM) -> Iterator[VM]:
    """The VM, watched."""
    with watched(session_vm):
        yield session_vm


@pytest.fixture
def run_in_vm(vm: VM) -> Callable[..., Result]:
    """Runs a command in the VM, with VM.run()'s arguments; the test fails with its output if the command does."""

    def run(*command: str | os.PathLike[str], **options: object) -> Result:
        result = vm.run(*command, **options)  # type: ignore[arg-type]
        if result.outcome is not Outcome.OK:
            pytest.fail(result.report(), pytrace=False)
        return result

    return run
