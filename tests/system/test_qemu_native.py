# SPDX-License-Identifier: GPL-2.0
"""QEMU with the patches of contrib/qemu: each memory transaction is one commit, and what the device refuses is handled."""

from __future__ import annotations

import errno
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import patched_qemu
import pytest
from building import BUILD, make
from debian import PROJECT, DebianError, output
from systems import Json, Run, System, linux, run_system

REFUSE = BUILD / "qemu" / "refuse.so"

DEFAULT = [
    System("q35", "seabios", smm=True, smp=4),
    System("pc", "seabios", smm=False, smp=16, cpu_pm=True),
    System("pc", "ovmf", smm=False, smp=1),
]
EVERY = [
    System(machine, firmware, smm, smp, cpu_pm=cpu_pm)
    for machine, firmware, smm, smp, cpu_pm in itertools.product(
        ["q35", "pc"], ["seabios", "ovmf"], [True, False], [1, 2, 4, 8, 16], [True, False]
    )
    # Sixteen vCPUs that meet in system management mode: not done in two minutes, without the patches as well
    if not (machine == "q35" and firmware == "ovmf" and smm and smp == 16)
]
# A guest that does not use KVM's clock: where a vCPU's state is set, KVM writes the time to the guest's memory.
WITHOUT_CLOCK = ["--cpu", "host,kvm=off"]
SMALL = System("q35", "seabios", smm=True, smp=2).options()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "system" in metafunc.fixturenames:
        systems = EVERY if metafunc.config.getoption("--all") else DEFAULT
        metafunc.parametrize("system", systems, ids=str)


@pytest.fixture(scope="module")
def qemu() -> str:
    """The patched QEMU's command."""
    return " ".join(patched_qemu.patched_qemu())


@pytest.fixture(scope="module")
def refusing(qemu: str) -> Iterator[Callable[..., str]]:
    """The same, with calls of the device that fail."""
    make(PROJECT / "tests" / "system")

    def command(call: str, first: int, last: int, error: int) -> str:
        return f"env LD_PRELOAD={REFUSE} 'REFUSE={call} {first} {last} {error}' {qemu}"

    yield command


def run_native(run_in_vm: Run, qemu: str, options: list[str], properties: str = "memslot-batch=on") -> Json:
    return run_system(run_in_vm, "--qemu", qemu, "--accel", f"kvm,{properties}", "--trace", *options)


def finished(report: Json) -> Json:
    """What was traced, of a QEMU that came to the end of what it had to do."""
    assert report["outcome"] == "finished", report
    assert report["status"] == "running"
    assert report["exit_status"] == 0
    traced: Json = report["traced"]
    return traced


def committed(report: Json) -> Json:
    """The same, of one that left all changes to the device."""
    traced = finished(report)
    assert traced["commits"] > 0
    assert traced["calls"] == traced["inhibited"] == traced["failed"] == traced["one_by_one"] == traced["retried"] == 0
    assert traced["fenced"] + traced["parked"] + traced["nothing"] == traced["commits"]
    return traced


# What it does by itself


def test_system(run_in_vm: Run, qemu: str, system: System) -> None:
    traced = committed(run_native(run_in_vm, qemu, system.options()))
    assert traced["parked"] == traced["bitmaps"] == 0
    # Several slots in one: that is what it is for
    assert traced["entries"] > traced["commits"]


def test_off_is_as_before(run_in_vm: Run, qemu: str) -> None:
    """The device is not opened, and vCPUs are kept out of KVM where memory is replaced."""
    traced = finished(run_native(run_in_vm, qemu, SMALL, "memslot-batch=off"))
    assert traced["commits"] == 0
    assert traced["inhibited"] > 0
    batched = committed(run_native(run_in_vm, qemu, SMALL, "memslot-batch=auto"))
    assert traced["calls"] > 2 * batched["commits"]


def test_linux_and_its_memory(run_in_vm: Run, qemu: str) -> None:
    """The guest sees the same with and without batches, and survives what memory can go through."""
    options = [*linux(System("q35", "seabios", smm=True, smp=2, linux=True)), *WITHOUT_CLOCK, "--bar"]
    before = run_native(run_in_vm, qemu, options, "memslot-batch=off")
    finished(before)
    steps = ["dimm", "virtio-mem", "bar", "dirty-rate", "migration", "transfer"]
    report = run_native(run_in_vm, qemu, [*options, "--steps", *steps])
    traced = committed(report)
    # The device's memory leaves a log again and again, in dirty-rate and transfer; nothing else stops vCPUs
    assert traced["bitmaps"] >= traced["parked"] > 0
    assert report["guest"] == before["guest"]
    assert report["guest_after"] == report["guest"]
    assert report["dimm"]["plugged"] > 100 << 20
    assert report["dimm"]["after"] < 20 << 20
    assert report["virtio-mem"]["grown_by"] == pytest.approx([128 << 20, 256 << 20, 64 << 20, 0], abs=4 << 20)
    assert report["bar"]["found"] == report["bar"]["wanted"]
    assert any(report["dirty-rate"]["rates"])
    assert report["migration"]["status"] == "completed"
    arrived(report["transfer"])


def arrived(transfer: Json) -> None:
    """All of the guest's memory is at the destination as it was at the source."""
    assert transfer["status"] == "completed"
    # 256 MiB but for VGA's 128 KiB, and the device's 1 MiB
    assert transfer["pages"] == (257 << 20) - (128 << 10) >> 12
    assert transfer["differ"] == transfer["bar_differs"] == []
    # The page that a log had which nobody has read: the guest did write it
    page, written = transfer["unseen"]
    assert page == written > 0


def test_migration_with_dirty_rings(run_in_vm: Run, qemu: str) -> None:
    options = [*linux(System("q35", "seabios", smm=False, smp=2, linux=True)), *WITHOUT_CLOCK, "--bar"]
    options += ["--steps", "bar", "transfer"]
    report = run_native(run_in_vm, qemu, options, "memslot-batch=on,dirty-ring-size=4096")
    traced = committed(report)
    # vCPUs leave KVM_RUN where the device's memory leaves the log, so that all is in the rings
    assert traced["bitmaps"] == 0
    assert traced["fenced"] > traced["parked"] > 0
    assert report["bar"]["found"] == report["bar"]["wanted"]
    arrived(report["transfer"])


def test_resets(run_in_vm: Run, qemu: str) -> None:
    """Memory is logged for a part of the time, so some resets take pages out of a log."""
    report = run_native(run_in_vm, qemu, [*SMALL, "--vga", "--resets", "100"])
    traced = committed(report)
    assert report["resets"]["times"] == 100
    assert traced["commits"] > 100
    # The display's memory is logged, and a reset takes it away
    assert traced["bitmaps"] >= traced["parked"] > 50


# What the device refuses


def test_device_is_not_there(run_in_vm: Run, qemu: str) -> None:
    """ENOENT: auto says nothing, on does not start."""
    run_in_vm("mv", "/dev/memslot", "/dev/memslot.away")
    try:
        report = run_native(run_in_vm, qemu, SMALL, "memslot-batch=auto")
        refused = run_native(run_in_vm, qemu, SMALL)
    finally:
        run_in_vm("mv", "/dev/memslot.away", "/dev/memslot")
    traced = finished(report)
    assert traced["commits"] == 0 and traced["calls"] > 0
    assert "memslot" not in report["errors"]
    assert ended_with(refused, "Could not open /dev/memslot: No such file or directory")


def ended_with(report: Json, words: str) -> bool:
    """Whether QEMU has ended by itself, as a failure, with one line that has these words."""
    lines = [line for line in report["last_words"].splitlines() if "/dev/memslot" in line]
    return report["outcome"] == "ended" and report["exit_status"] == 1 and len(lines) == 1 and words in lines[0]


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EBUSY, errno.ENOMEM, errno.EIO], ids=errno.errorcode.get)
def test_vm_is_refused(run_in_vm: Run, refusing: Callable[..., str], error: int) -> None:
    """The device is there, and does not take the VM: auto says so, on does not start."""
    command = refusing("bind", 1, 1, error)
    report = run_native(run_in_vm, command, SMALL, "memslot-batch=auto")
    traced = finished(report)
    assert traced["commits"] == 0 and traced["calls"] > 0 and traced["inhibited"] > 0
    assert report["errors"].count("memslot-batch: ") == 1
    assert ended_with(run_native(run_in_vm, command, SMALL), "/dev/memslot: bind")


# After these, the next transaction is given to the device again
PASSING = (errno.ENOENT, errno.EBUSY, errno.EEXIST, errno.ENOMEM)
LASTING = (errno.EOPNOTSUPP, errno.EIO)


@pytest.mark.parametrize("error", [*PASSING, *LASTING], ids=errno.errorcode.get)
def test_commit_is_refused(run_in_vm: Run, refusing: Callable[..., str], error: int) -> None:
    """In the middle of the boot: what was to be committed is done one by one, with one warning."""
    # EBUSY is tried twice for each transaction
    tries = 2 if error == errno.EBUSY else 1
    report = run_native(run_in_vm, refusing("commit", 5, 4 + 2 * tries, error), SMALL, "memslot-batch=auto")
    traced = finished(report)
    assert report["errors"].count("memslot-batch: ") == 1
    assert traced["calls"] > 0
    if error in PASSING:
        assert traced["one_by_one"] == 2
        assert traced["failed"] == 2 * tries
        assert traced["retried"] == 2 * (tries - 1)
        assert traced["commits"] > 4 + 2 * tries
        assert traced["inhibited"] == 2
    else:
        assert traced["failed"] == traced["one_by_one"] == 1
        assert traced["commits"] == 5
        assert traced["inhibited"] > 1
        assert "from now on" in report["errors"]


def test_busy_commit_is_tried_again(run_in_vm: Run, refusing: Callable[..., str]) -> None:
    """With vCPUs kept out of KVM, which is what it was busy with; so it stays one batch, and is no reason to end."""
    report = run_native(run_in_vm, refusing("commit", 5, 5, errno.EBUSY), SMALL)
    traced = finished(report)
    assert traced["failed"] == traced["retried"] == traced["inhibited"] == 1
    assert traced["calls"] == traced["one_by_one"] == 0
    assert "memslot-batch: " not in report["errors"]


@pytest.mark.parametrize("error", [errno.EBUSY, errno.EIO], ids=errno.errorcode.get)
def test_on_ends_with_the_commit(run_in_vm: Run, refusing: Callable[..., str], error: int) -> None:
    report = run_native(run_in_vm, refusing("commit", 5, 6, error), SMALL)
    assert ended_with(report, "/dev/memslot: commit")


def test_on_does_not_leave_it_to_another_accelerator(run_in_vm: Run, refusing: Callable[..., str]) -> None:
    """The irqchip is KVM's by then, so the next -accel would run a machine that is half KVM's."""
    command = refusing("bind", 1, 1, errno.EIO)
    report = run_system(run_in_vm, "--qemu", command, "--accel", "kvm,memslot-batch=on", *SMALL, "--next-accel", "qtest")
    assert ended_with(report, "/dev/memslot: bind")


def test_no_room_for_bitmaps(run_in_vm: Run, qemu: str) -> None:
    """RLIMIT_MEMLOCK is 0: the logs are read while vCPUs are kept out, and the commits have no buffers."""
    limited = f"setpriv --bounding-set -ipc_lock --inh-caps -ipc_lock prlimit --memlock=0:0 {qemu}"
    report = run_native(run_in_vm, limited, [*SMALL, "--vga", "--resets", "12"])
    traced = finished(report)
    assert traced["failed"] == traced["retried"] == traced["inhibited"] > 0
    assert traced["one_by_one"] == traced["calls"] == 0


# The series


def test_series_applies_to_the_newest_qemu(directory: Path) -> None:
    """Of those whose source Debian hands out; lines may have moved, but none of the context may differ."""
    newest, _ = patched_qemu.newest()
    shutil.copytree(newest, directory / "qemu")
    patched_qemu.apply(directory / "qemu")


def test_series_is_as_qemu_asks_for(qemu: str) -> None:
    check = patched_qemu.HOME / "unpatched" / "scripts" / "checkpatch.pl"
    for patch in patched_qemu.patches():
        said = output(["perl", str(check), "--no-tree", str(patch)])
        assert "total: 0 errors, 0 warnings" in said


def test_patch_that_does_not_apply_is_named(directory: Path) -> None:
    shutil.copytree(patched_qemu.HOME / "unpatched" / "accel", directory / "qemu" / "accel")
    with pytest.raises(DebianError, match="0001-.* does not apply"):
        (directory / "qemu" / "accel" / "kvm" / "kvm-all.c").write_text("another\n")
        patched_qemu.apply(directory / "qemu")
