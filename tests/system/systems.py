# SPDX-License-Identifier: GPL-2.0
"""What machines system.py runs, and how tests ask it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from building import BUILD
from debian import PROJECT, locked
from initramfs import Cpio, loading_order
from kernels import Kernel, kernel
from runner import DEFAULT_KERNEL, Result

INITRAMFS = BUILD / "qemu" / "initramfs"
SYSTEM = PROJECT / "tests" / "system" / "system.py"
BOOTS = PROJECT / "tests" / "system" / "boots.py"
MEMSLOT_RUN = PROJECT / "build" / "tools" / "memslot-run"

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


def _pack(debian: Kernel) -> None:
    """Makes the initramfs of a Linux that ends in a shell."""
    modules = loading_order(debian, ["virtio_pci", "virtio_mem"])
    archive = Cpio()
    for directory in ("bin", "dev", "proc", "sys", "modules"):
        archive.directory(directory)
    archive.character_device("dev/console", 5, 1)
    archive.program("bin/busybox", Path("/bin/busybox").read_bytes())
    archive.program("init", INIT.replace("@MODULES@", " ".join(Path(module).name for module in modules)).encode())
    for module in modules:
        archive.program(f"modules/{Path(module).name}", (debian.modules / module).read_bytes())
    packed = archive.finish()
    with locked(INITRAMFS.parent):
        # Another worker's VM may be booting from it
        if not INITRAMFS.exists() or INITRAMFS.read_bytes() != packed:
            INITRAMFS.write_bytes(packed)


def linux(system: System) -> list[str]:
    """Options for that Linux on some system."""
    debian = kernel(DEFAULT_KERNEL)
    _pack(debian)
    # OVMF starts EFI programs only; SeaBIOS starts what need not be decompressed, too
    compressed = debian.image.with_name(f"vmlinuz-{debian.release}")
    image = compressed if system.firmware == "ovmf" else debian.image
    return [*system.options(), "--kernel", str(image), "--initramfs", str(INITRAMFS)]


def run_system(run_in_vm: Run, *options: str) -> Json:
    return json.loads(run_in_vm(SYSTEM, *options, timeout=900).stdout)  # type: ignore[no-any-return]


def boot(run_in_vm: Run, *options: str) -> Json:
    return json.loads(run_in_vm(BOOTS, *options).stdout)  # type: ignore[no-any-return]


def boot_by_commits(run_in_vm: Run, *options: str) -> None:
    """Stock QEMU boots, and no vCPU is asked to leave the guest."""
    report = boot(run_in_vm, "--memslot-run", str(MEMSLOT_RUN), *options)
    assert report["outcome"] == "finished", report
    counted = report["memslot"]
    assert counted["changes"] > counted["commits"] > 0
    # Also where SeaBIOS closes SMRAM, and memory goes away
    assert counted["fenced"] == counted["commits"]
    assert counted["parked"] == 0
    assert counted["failed"] == counted["lost"] == counted["passed"] == 0
