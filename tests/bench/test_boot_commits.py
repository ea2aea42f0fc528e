# SPDX-License-Identifier: GPL-2.0
"""`make bench-qemu`: what it counts, and what it makes of that."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from debian import PROJECT
from runner import Result

sys.path.insert(0, str(PROJECT / "bench"))

import boot_commits  # noqa: E402
import boot_in_vm  # noqa: E402
from boot_commits import Variant, summarize, table  # noqa: E402

Json = dict[str, Any]

# As tracefs prints it; thread 7's ioctl that ends is another one of the VM's.
TRACE = """\
# tracer: nop
 qemu-system-x86-7       [001] .....    10.000100: call: (kvm_vm_ioctl+0x0/0xa60 [kvm]) request=1075883590
 qemu-system-x86-7       [001] .....    10.000200: grace: (synchronize_srcu_expedited+0x0/0x20)
 CPU 0/KVM-9             [000] .....    10.000250: grace: (synchronize_srcu_expedited+0x0/0x20)
 CPU 0/KVM-9             [000] d....    10.000300: eintr: (__x64_sys_ioctl+0x8a/0xc0 <- kvm_vcpu_ioctl) ret=-4
 qemu-system-x86-7       [001] d....    10.001100: call_end: (__x64_sys_ioctl+0x8a/0xc0 <- kvm_vm_ioctl)
 qemu-system-x86-7       [001] d....    10.001200: call_end: (__x64_sys_ioctl+0x8a/0xc0 <- kvm_vm_ioctl)
 qemu-system-x86-7       [001] .....    10.001300: sys_tgkill(tgid: 7, pid: 9, sig: a)
 CPU 0/KVM-9             [000] .....    10.002000: memslot_commit_start: vm=7 entries=3 flags=0x0
 CPU 0/KVM-9             [000] .....    10.002100: grace: (synchronize_srcu_expedited+0x0/0x20)
 CPU 0/KVM-9             [000] .....    10.002500: memslot_commit_end: vm=7 err=0 strategy=FENCE grace_periods=1 kept=5
"""


def test_trace_is_counted() -> None:
    assert boot_in_vm.counted(TRACE) == {
        "calls": 1,
        "commits": 1,
        "fenced": 1,
        "parked": 0,
        "grace_periods": 2,
        "kicks": 1,
        "eintr": 1,
        "kernel_ms": 1.5,
    }


def boots() -> list[Json]:
    counts = dict.fromkeys(boot_commits.COUNTS, 2)
    return [
        {"vcpus": 2, "variant": name, "round": number, "outcome": outcome, "seconds": 1.0, "ms": ms, **counts}
        for name, times in {"stock": (None, None), "batch": (1.0, 3.0)}.items()
        for number, ms in enumerate(times)
        for outcome in ["finished" if ms else "died"]
    ]


def test_only_boots_that_finish_are_timed() -> None:
    found = summarize(boots())["2"]
    assert found["batch"]["survived"] == found["batch"]["boots"] == found["stock"]["boots"] == 2
    assert found["stock"]["survived"] == 0
    assert found["stock"]["mean_ms"] is found["stock"]["ioctls"] is None
    assert [found["batch"][name] for name in ("mean_ms", "median_ms", "worst_ms")] == [2.0, 2.0, 3.0]
    assert found["batch"]["stdev_ms"] == pytest.approx(2**0.5, abs=1e-3)
    assert found["batch"]["ioctls"] == 4


def test_table_marks_the_published_figures() -> None:
    said = table(summarize(boots()), [Variant("stock", "QEMU 7.2", ""), Variant("batch", "QEMU 10.0, patched", "")])
    (published,) = [line for line in said.splitlines() if "pause, 2022" in line]
    assert "another machine" in published and published.split()[-1] == "3.0"
    assert "0 of 2" in said and "2 of 2" in said


@pytest.fixture(scope="module")
def chosen() -> dict[str, Variant]:
    return {variant.name: variant for variant in boot_commits.variants()}


def test_boots_are_counted(run_in_vm: Callable[..., Result], chosen: dict[str, Variant]) -> None:
    """Exact counts of one boot each; times are only looked at for being there."""
    found: dict[str, Json] = {}
    for name, variant in chosen.items():
        if name != "stock":
            found[name] = json.loads(run_in_vm(boot_commits.BOOT, *variant.command(2)).stdout)
            assert found[name]["outcome"] == "finished", found[name]
            assert found[name]["ms"] > 0
    pause, batch = found["pause"], found["batch"]
    assert pause["commits"] == batch["calls"] == batch["parked"] == 0
    assert batch["fenced"] == batch["commits"] > 0
    assert pause["calls"] > 2 * batch["commits"]
    assert pause["grace_periods"] > batch["grace_periods"] >= batch["commits"]
    assert pause["transactions"] >= batch["transactions"]
    # What pausing is made of
    assert pause["kicks"] > batch["kicks"]
    assert pause["eintr"] > batch["eintr"]
    if "memslot-run" in found:
        assert found["memslot-run"]["calls"] == 0
        assert found["memslot-run"]["fenced"] == found["memslot-run"]["commits"] > batch["commits"]
    # Nothing is left that would keep a module from being unloaded
    assert run_in_vm("cat", "/sys/kernel/tracing/kprobe_events").stdout == ""
    assert run_in_vm("ls", "/sys/kernel/tracing/instances").stdout == ""
