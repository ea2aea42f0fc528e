# SPDX-License-Identifier: GPL-2.0
"""Stock QEMU on Intel, in a VM that sees none of the host's files: what QEMU needs is packed in.

Nothing gets a processor of that VM back from a guest with interrupts disabled, as SeaBIOS has them (test_bochs.py shows
it), so vCPUs that halt leave the guest, which is cpu-pm=off; and of a stock QEMU's boots none is seen to die.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from runner import VM
from systems import BOOTS, Run, boot, boot_by_commits

QEMU = [Path("/usr/bin/qemu-system-x86_64"), *Path("/usr/share/seabios").glob("*.bin"), Path("/usr/share/qemu/kvmvapic.bin")]


@pytest.fixture(scope="module")
def session_vm(kernel_version: str, vendor: str, kvm: str) -> Iterator[VM]:
    """Instead of the one that all tests share."""
    with VM(kernel_version, module=True, vendor=vendor, kvm=kvm, cpus=2, files=[*QEMU, BOOTS]) as machine:
        yield machine


@pytest.mark.every_vendor
@pytest.mark.configured(intel=[""])
def test_boots(run_in_vm: Run) -> None:
    assert boot(run_in_vm, "--no-cpu-pm")["outcome"] == "finished"
    boot_by_commits(run_in_vm, "--no-cpu-pm")
