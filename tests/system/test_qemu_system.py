# SPDX-License-Identifier: GPL-2.0
"""Stock QEMU under memslot-run: machines, firmware, SMM, numbers of vCPUs, and Linux in it.

Emulated virtualization is slow, so few combinations are run by default; --all
runs them all.
"""

from __future__ import annotations

import itertools

import pytest
from systems import MEMSLOT_RUN, Json, Run, System, linux, run_system

DEFAULT = [
    System("q35", "seabios", smm=True, smp=1),
    System("pc", "seabios", smm=False, smp=16),
    System("pc", "seabios", smm=True, smp=4, cpu_pm=True),
    System("q35", "ovmf", smm=True, smp=2),
]
EVERY = [
    System(machine, firmware, smm, smp, linux)
    for machine, firmware, smm, smp, linux in itertools.product(
        ["q35", "pc"], ["seabios", "ovmf"], [True, False], [1, 2, 4, 16], [True, False]
    )
    # Sixteen vCPUs that meet in system management mode: not done in two minutes, without memslot-run as well
    if not (machine == "q35" and firmware == "ovmf" and smm and smp == 16)
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "system" in metafunc.fixturenames:
        systems = EVERY if metafunc.config.getoption("--all") else DEFAULT
        metafunc.parametrize("system", systems, ids=str)


def under_memslot_run(run_in_vm: Run, options: list[str]) -> Json:
    """A report, after looking at what memslot-run counted."""
    report = run_system(run_in_vm, "--memslot-run", str(MEMSLOT_RUN), *options)
    assert report["outcome"] == "finished", report
    assert report["status"] == "running"
    counted = report["memslot"]
    # A deletion is a commit, and that nothing took the memory's place may be another
    assert 2 * counted["changes"] >= counted["commits"] > 0
    assert counted["fenced"] > 0
    assert counted["fenced"] + counted["parked"] == counted["commits"]
    assert counted["failed"] == counted["lost"] == counted["passed"] == counted["vms_passed"] == 0
    return report


def test_system(run_in_vm: Run, system: System) -> None:
    options = linux(system) if system.linux else system.options()
    under_memslot_run(run_in_vm, options)


def test_linux_and_its_memory(run_in_vm: Run) -> None:
    """The guest is the same with and without, and survives what memory can go through."""
    options = linux(System("q35", "seabios", smm=True, smp=2, linux=True))
    stock = run_system(run_in_vm, *options)
    assert stock["outcome"] == "finished", stock
    report = under_memslot_run(run_in_vm, [*options, "--steps", "dimm", "virtio-mem", "migration"])
    # Not even where q35's system management memory is closed, and nothing takes its place
    assert report["memslot"]["parked"] == 0
    assert report["guest"] == stock["guest"]
    assert report["guest"]["cpus"] == "2"
    assert report["guest_after"] == report["guest"]
    assert report["dimm"]["plugged"] > 100 << 20
    assert report["dimm"]["after"] < 20 << 20
    assert report["virtio-mem"]["grown_by"] == pytest.approx([128 << 20, 256 << 20, 64 << 20, 0], abs=4 << 20)
    assert report["migration"]["status"] == "completed"
