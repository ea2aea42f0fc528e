# SPDX-License-Identifier: GPL-2.0
"""What the emulator of Intel's processors cannot do: once a test here fails, what vmtest/bochs.py does about it can go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from building import BUILD, make
from debian import PROJECT
from runner import VM, Outcome, hardware_virtualization

EINTR = 4
KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTR = 9, 10

intel = pytest.mark.configured(intel=["enable_apicv=1"])
pytestmark = [pytest.mark.every_vendor, pytest.mark.skipif(hardware_virtualization() == "vmx", reason="this machine needs no emulator")]


@pytest.fixture(scope="module")
def alarmed() -> Path:
    """A program that tells how a guest ends when an alarm is set."""
    make(PROJECT / "tests/vmtest")
    return BUILD / "vmtest" / "alarmed"


@pytest.fixture(scope="module")
def machine(vendor: str, kvm: str, alarmed: Path) -> Iterator[VM]:
    """With another processor, for the timer; it is soon known that it is lost."""
    with VM(vendor=vendor, kvm=kvm, cpus=2, memory=1024, files=[alarmed], answer_timeout=30) as vm:
        yield vm


def ending(vm: VM, *command: str | Path) -> tuple[int, int, int]:
    """errno, KVM's exit reason, and the milliseconds that it took."""
    result = vm.run(*command, timeout=60)
    assert result.outcome is Outcome.OK, result.report()
    error, reason, milliseconds = map(int, result.stdout.split())
    return error, reason, milliseconds


@pytest.mark.configured(amd=[""], intel=["enable_apicv=1"])
def test_alarm_ends_a_guest(machine: VM, alarmed: Path) -> None:
    error, reason, milliseconds = ending(machine, alarmed, "enabled")
    assert (error, reason) == (EINTR, KVM_EXIT_INTR)
    assert milliseconds >= 100


@pytest.mark.configured(amd=[""])
def test_alarm_ends_a_guest_whose_interrupts_are_disabled(machine: VM, alarmed: Path) -> None:
    assert ending(machine, alarmed, "disabled")[:2] == (EINTR, KVM_EXIT_INTR)


@intel
def test_apicv_does_not_work(machine: VM, alarmed: Path) -> None:
    assert ending(machine, alarmed, "controller")[:2] == (0, KVM_EXIT_FAIL_ENTRY)


@intel
def test_alarm_does_not_end_a_guest_whose_interrupts_are_disabled(machine: VM, alarmed: Path) -> None:
    """Or only after long; the VM may be lost with it."""
    result = machine.run(alarmed, "disabled", timeout=1)
    assert result.outcome is not Outcome.OK or int(result.stdout.split()[2]) > 1000, result.report()
