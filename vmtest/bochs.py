# SPDX-License-Identifier: GPL-2.0
"""The test VM in Bochs, which emulates Intel's virtualization (VMX, EPT, PML), as nothing else does.

Bochs is unpacked below .cache/, with the libraries of the Debian that it is from, and started by that Debian's loader:
nothing is installed, and it is the same on every machine.  It runs all processors in one thread, a few instructions of
each by turns, and its clocks count instructions: what is slow for us is not for the VM.

What it cannot do, and what is done about it:

- A guest that has interrupts disabled is not left for an interrupt of its host, though VMX says so: nothing gets a
  processor back from such a guest that spins.  Ours have them enabled; SeaBIOS has not, so a QEMU in it must not be told
  that vCPUs which halt stay in the guest (cpu-pm=on).
- KVM's APICv does not work in it: KVM_RUN of a VM with an interrupt controller in the kernel fails.  KVM is loaded
  without.
- An interrupt that another processor sends does not end MWAIT: who waits for its answer waits for the next timer, which
  makes many a test ten times as slow.  Linux is told to use HLT.
- A Linux that QEMU boots in it halted in six of nine boots in a page fault before its first message, with memslot-run and
  without, and was up after some 40 s in the others: no test boots one.
- It shows none of the host's files: initramfs.py packs what is needed.
- It goes on after a power-off; the console says when that is.
- It has no way to send an NMI: a VM that hangs does not say where.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import bootdisk
from debian import CACHE, PROJECT, Apt, Index, Offer, locked, replacement
from initramfs import packing
from kernels import Kernel
from machine import Lost, Machine, kernel_parameters

SUITE = "trixie"
PACKAGE = "bochs"
DISPLAY = "bochs-term"
# What of its dependencies comes with it: all but the other displays, and what libraries have besides.
PARTS = r"bochsbios|vgabios|lib.+"
# 3.1, which Debian's unstable has, does not boot Linux: a division by zero while it sets up its clocks.  2.7, of Debian
# 12, takes three times as long, and Linux warns of its processor's state (xstate.c).
VERSION = "3.0"
ADVICE = (
    f"only Bochs {VERSION} is known to boot Linux with KVM on Intel (vmtest/bochs.py says what others do); "
    "to test without Intel: make test VENDORS=amd BRIEF_VENDORS="
)

# The one with EPT, PML, VPID and unrestricted guests.  Instructions in a second of the VM's: about what Bochs does in
# one of ours.
MODEL = "corei7_skylake_x"
INSTRUCTIONS = 50_000_000
LEAST_SECONDS_TO_START = 60.0

# It has a hole for PCI below 4 GiB.
MOST_MEMORY = 3072  # MiB

# What the tests run of what was built: all programs of these folders.
FOLDERS = ("bench", "guests", "kselftest", "tools")

PORT = "/dev/ttyS1"
GOODBYE = re.compile(rb"reboot: (?:Power down|System halted)")

CONFIGURATION = """\
config_interface: textconfig
display_library: term
plugin_ctrl: biosdev=1, serial=1, speaker=0, parallel=0, gameport=0
cpu: model={model}, count={cpus}, ips={instructions}, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest={memory}, host={memory}
romimage: file={share}/bochs/BIOS-bochs-latest, options=fastboot
vgaromimage: file={share}/vgabios/vgabios.bin
optromimage1: file={rom}, address={rom_address:#x}
pci: enabled=1, chipset=i440fx
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, path={disk}, mode=flat
ata1: enabled=0
boot: disk
clock: sync=none, time0=utc
com1: enabled=1, mode=file, dev={console}
com2: enabled=1, mode=socket-client, dev={agent}
log: {log}
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
"""

# For Linux: its clock is Bochs's count of instructions, whatever CPUID says; idle processors halt; the emulated
# processor has no bugs to be mitigated; and what takes seconds of it, tests of ciphers and certificates and a look at all
# page tables for what is writable, is left out.
PARAMETERS = (
    f"tsc=reliable tsc_early_khz={INSTRUCTIONS // 1000} hpet=disable idle=halt mitigations=off rodata=off cryptomgr.notests "
    "initcall_blacklist=load_system_certificate_list,load_revocation_certificate_list"
)


def offers(index: Index) -> list[Offer]:
    """The Bochs that works, as the archive has it; and why each other one is none."""

    def offer(version: str) -> Offer:
        what = f"{PACKAGE} {version}"
        if not re.match(rf"{re.escape(VERSION)}\b", version):
            return Offer(what, (), f"it is not {VERSION}")
        return index.offer(what, [(PACKAGE, version), (DISPLAY, version)], PARTS)

    return [offer(version) for version in index.versions(PACKAGE)]


def unpacked() -> Path:
    """Where Bochs is, after downloading it if it is not in the cache."""
    target = CACHE / f"{PACKAGE}-{VERSION}"
    with locked(CACHE):
        if not target.exists():
            with replacement(target) as root:
                Apt(SUITE).fetch("the test VM's Bochs", offers, root, ADVICE)
    return target


def _programs() -> list[Path]:
    """What was built to be run in the VM."""
    files = (file for folder in FOLDERS for file in sorted((PROJECT / "build" / folder).glob("*")))
    return [file for file in files if file.is_file() and os.access(file, os.X_OK)]


class Bochs(Machine):
    """The agent is at the second serial port, which Bochs connects to a socket of ours."""

    kvm_parameters = ("enable_apicv=0",)

    def __init__(self, kernel: Kernel, cpus: int, memory: int, slowness: int, files: Iterable[Path]) -> None:
        super().__init__()
        root = unpacked()
        libraries = root / "usr/lib/x86_64-linux-gnu"
        self._listener = self._resources.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._serial, console = os.pipe()
        self._resources.callback(os.close, self._serial)
        wanted = [*files, Path("/bin/bash"), *_programs()]
        initramfs = packing(kernel, ["kvm_intel"], wanted, [PROJECT, Path.cwd()], PORT)
        parameters = f"{kernel_parameters(kernel, slowness)} {PARAMETERS}"
        disk = bootdisk.disk(kernel.image, initramfs, parameters, memory << 20)
        handed: list[int] = [console]

        def hand(name: str, data: bytes) -> str:
            """A file that only Bochs sees."""
            handed.append(os.memfd_create(name))
            with open(handed[-1], "wb", closefd=False) as file:
                file.write(data)
            return f"/proc/self/fd/{handed[-1]}"

        try:
            configuration = CONFIGURATION.format(
                model=MODEL,
                cpus=cpus,
                instructions=INSTRUCTIONS,
                memory=memory,
                share=root / "usr/share",
                rom=hand("rom", bootdisk.rom()),
                rom_address=bootdisk.ROM_ADDRESS,
                disk=hand("disk", disk),
                console=f"/proc/self/fd/{console}",
                agent="127.0.0.1:{}".format(self._listener.getsockname()[1]),
                log="/dev/stderr",
            )
            command = [str(root / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", str(libraries)]
            command += [str(root / "usr/bin/bochs-bin"), "-q", "-f", hand("configuration", configuration.encode())]
            environment = {**os.environ, "LTDL_LIBRARY_PATH": str(libraries / "bochs/plugins"), "TERM": "dumb"}
            self._launch(command, environment, handed)
        except BaseException:
            self._resources.close()
            raise
        finally:
            for file in handed:
                os.close(file)
        os.set_blocking(self._serial, False)

    def receive(self, deadline: float | None, sources: Mapping[int, Callable[[], None]] | None = None) -> tuple[int, bytes]:
        """Lets Bochs run only while somebody waits for it.

        It takes all of a processor even while its own are idle; and its clocks do not see that it was stopped.
        """
        self._process.send_signal(signal.SIGCONT)
        try:
            if self._listener.fileno() >= 0:
                self._meet()
            return super().receive(deadline, sources)
        finally:
            self._process.send_signal(signal.SIGSTOP)

    def _meet(self) -> None:
        """Waits until Bochs has connected its serial port."""
        self._listener.settimeout(1)
        end = time.monotonic() + LEAST_SECONDS_TO_START
        while True:
            try:
                agent, _ = self._listener.accept()
                break
            except TimeoutError:
                if self._process.poll() is not None:
                    raise Lost("died") from None
                if time.monotonic() > end:
                    raise Lost("hung") from None
        self._listener.close()
        self._agent = self._resources.enter_context(agent)
        self._agent.setblocking(False)

    def _listen(self) -> None:
        if GOODBYE.search(self.console):
            raise Lost("died")
