# SPDX-License-Identifier: GPL-2.0
"""Loading: what the module does not find in KVM, it names, and then it does not load.  Unloading: all is gone."""

from __future__ import annotations

import errno
import shutil
import subprocess
from pathlib import Path

import pytest
from building import BUILD, make, make_module
from debian import PROJECT
from kernels import KERNELS, make_command
from runner import VM, Outcome


# A function and a variable that are nowhere under the names that they get.
HIDDEN = {"kvm_arch_free_memslot": "kvm_arch_free_hidden", "kvm_cpu_caps": "kvm_cpu_hidden"}
DECLARATION = """
struct kvm;
struct kvm_memory_slot;
void kvm_arch_free_hidden(struct kvm *kvm, struct kvm_memory_slot *slot);
"""
FIRST_LINE = "#ifndef MEMSLOT_COMPAT_SYMBOLS_H\n"


def hide(source: str) -> str:
    for name, hidden in HIDDEN.items():
        source = source.replace(name, hidden)
    return source.replace(FIRST_LINE, FIRST_LINE + DECLARATION)


@pytest.mark.every_kernel
def test_hidden_symbols_are_named(directory: Path, kernel_version: str) -> None:
    run = make_module(directory, kernel_version, edit=hide)
    assert run.returncode == 0, run.stdout + run.stderr
    with VM(kernel_version, kvm="") as vm:
        loaded = vm.run("insmod", directory / "build" / "memslot.ko")
        assert loaded.outcome is Outcome.FAILED and loaded.complaints == [], loaded.report()
        assert "insmod: ERROR" in loaded.stderr
        said = [line.partition("memslot: ")[2] for line in loaded.kernel_log if "cannot find" in line]
        assert sorted(said) == sorted(f"cannot find {hidden} in this kernel" for hidden in HIDDEN.values())
        left = vm.run("/bin/sh", "-c", "! grep -w memslot /proc/modules && ! test -e /dev/memslot")
        assert left.outcome is Outcome.OK, left.report()


@pytest.mark.every_kernel
def test_vm_that_another_module_tracks(directory: Path, kernel_version: str) -> None:
    """It is refused; since 6.9 for good, for KVM does not tell any more whether there will be another tracker."""
    for source in (Path(__file__).with_name("page_track")).iterdir():
        shutil.copy(source, directory)
    tracker = make_command(kernel_version, f"M={directory}", "modules", shared=[directory])
    subprocess.run(tracker, check=True, stdout=subprocess.DEVNULL)
    make(PROJECT / "tests/module")
    with VM(kernel_version, module=True) as vm:
        assert vm.run("insmod", directory / "page_track.ko").outcome is Outcome.OK
        result = vm.run(BUILD / "tracked/tracked")
        assert result.outcome is Outcome.OK and result.complaints == [], result.report()
    refused = f"errno {errno.EOPNOTSUPP}: another module (KVMGT) tracks the VM's pages"
    ended = "0 created, 1 moved" if (KERNELS[kernel_version].built_from or kernel_version) == "6.1" else refused
    assert result.stdout.splitlines() == ["1 created, 0 moved", refused, ended]


def test_unloading_leaves_nothing(kernel_version: str) -> None:
    """Neither for people to see nor, where the kernel has kmemleak, lost in its memory."""
    make(PROJECT / "tests/guests")
    churn = [str(BUILD / "guests/churn"), "--vcpus", "2", "--transactions", "8"]
    with VM(kernel_version, module=True) as vm:
        vm.find_leaks()
        for commands in ([churn, ["rmmod", "memslot"]], [[*churn, "--park"], ["rmmod", "memslot"]]):
            for command in commands:
                result = vm.run(*command)
                assert result.outcome is Outcome.OK and result.complaints == [], result.report()
            left = vm.run("/bin/sh", "-c", "! grep -w memslot /proc/modules /proc/kallsyms && ! test -e /dev/memslot")
            assert left.outcome is Outcome.OK, left.report()
            loaded = vm.run("insmod", vm.module_path)
            assert loaded.outcome is Outcome.OK and loaded.complaints == [], loaded.report()
        assert vm.run("rmmod", "memslot").outcome is Outcome.OK
        assert not vm.find_leaks()
