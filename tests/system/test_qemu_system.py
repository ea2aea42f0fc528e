# SPDX-License-Identifier: GPL-2.0
"""Stock QEMU under memslot-run: machines, firmware, SMM, numbers of vCPUs, and Linux in it.

Emulated virtualization is slow, so few combinations are run by default; --all
runs them all.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from debian import PROJECT
from initramfs import Cpio, loading_order
from kernels import kernel
from runner import DEFAULT_KERNEL, Result

SYSTEM = PROJECT / "tests" / "system" / "system.py"
MEMSLOT_RUN = PROJECT / "build" / "tools" / "memslot-run"
INITRAMFS = PROJECT / "build" / "qemu" / "initramfs"

Json = dict[str, Any]
Run = Callable[..., Result]

INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in @MODULES@; do
	insmod "/modules/$module"
done
echo 0 > /proc/sys/kernel/printk
echo memslot-guest: shell
# No terminal on one side: a shell that neither prompts nor edits lines
sh < /dev/ttyS0 2>&1 | cat > /dev/ttyS0
"""


@dataclass(frozen=True)
class System:
    machine: str
    firmware: str
    smm: bool
    smp: int
    linux: bool = False
    cpu_pm: bool = False

    def __str__(self) -> str:
        words = [self.machine, self.firmware, "smm" if self.smm else "no-smm", f"smp{self.smp}"]
        return "-".join([*words, *["linux"] * self.linux, *["cpu-pm"] * self.cpu_pm])

    def options(self) -> list[str]:
        options = ["--machine", self.machine, "--firmware", self.firmware, "--smp", str(self.smp)]
        return [*options, *["--smm"] * self.smm, *["--cpu-pm"] * self.cpu_pm]


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


@pytest.fixture(scope="module")
def linux() -> Callable[[System], list[str]]:
    """Options for a Linux that ends in a shell, on some system."""
    debian = kernel(DEFAULT_KERNEL)
    modules = loading_order(debian, ["virtio_pci", "virtio_mem"])
    archive = Cpio()
    for directory in ("bin", "dev", "proc", "sys", "modules"):
        archive.directory(directory)
    archive.character_device("dev/console", 5, 1)
    archive.program("bin/busybox", Path("/bin/busybox").read_bytes())
    archive.program("init", INIT.replace("@MODULES@", " ".join(Path(module).name for module in modules)).encode())
    for module in modules:
        archive.program(f"modules/{Path(module).name}", (debian.modules / module).read_bytes())
    INITRAMFS.parent.mkdir(parents=True, exist_ok=True)
    INITRAMFS.write_bytes(archive.finish())

    def options(system: System) -> list[str]:
        # OVMF starts EFI programs only; SeaBIOS starts what need not be decompressed, too
        compressed = debian.image.with_name(f"vmlinuz-{debian.release}")
        image = compressed if system.firmware == "ovmf" else debian.image
        return [*system.options(), "--kernel", str(image), "--initramfs", str(INITRAMFS)]

    return options


def run(run_in_vm: Run, *options: str) -> Json:
    return json.loads(run_in_vm(SYSTEM, *options, timeout=900).stdout)  # type: ignore[no-any-return]


def under_memslot_run(run_in_vm: Run, options: list[str]) -> Json:
    """A report, after looking at what memslot-run counted."""
    report = run(run_in_vm, "--memslot-run", str(MEMSLOT_RUN), *options)
    assert report["outcome"] == "finished", report
    assert report["status"] == "running"
    counted = report["memslot"]
    # A deletion is a commit, and that nothing took the memory's place may be another
    assert 2 * counted["changes"] >= counted["commits"] > 0
    assert counted["fenced"] > 0
    assert counted["fenced"] + counted["parked"] == counted["commits"]
    assert counted["failed"] == counted["lost"] == counted["passed"] == counted["vms_passed"] == 0
    return report


def test_system(run_in_vm: Run, system: System, request: pytest.FixtureRequest) -> None:
    options = request.getfixturevalue("linux")(system) if system.linux else system.options()
    under_memslot_run(run_in_vm, options)


def test_linux_and_its_memory(run_in_vm: Run, linux: Callable[[System], list[str]]) -> None:
    """The guest is the same with and without, and survives what memory can go through."""
    options = linux(System("q35", "seabios", smm=True, smp=2, linux=True))
    stock = run(run_in_vm, *options)
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
