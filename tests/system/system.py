#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Runs Debian's own, unmodified QEMU through what changes memslots; runs in the test VM.

Firmware alone, or Linux up to a shell and then, one after the other: memory
plugged and unplugged (pc-dimm), virtio-mem resized, all memory logged for a
migration to nowhere.  The guest is asked over its serial console what it sees.

Prints one JSON object: outcome ("finished", "died": KVM internal error, or
what it was stuck in), seconds per step, what the guest said, and with
--memslot-run what memslot-run counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import selectors
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KVM_GAVE_UP = b"KVM internal error"
OVMF = Path("/usr/share/OVMF")
# SeaBIOS finds nothing to boot from; OVMF has a shell of its own
LAST_WORDS = rb"No bootable device|No bootable option|Shell>"
STEPS = ["dimm", "virtio-mem", "migration"]
PLUGGED = 128 << 20
# Bytes by which the guest's MemTotal may differ from what is plugged
COUNTED_APART = 4 << 20

Json = dict[str, Any]


class Stuck(Exception):
    """Something did not come in time; the message says what."""


class Died(Exception):
    """KVM gave the guest up."""


class Machine:
    """A running QEMU: its serial console and its monitor."""

    def __init__(self, command: list[str], folder: Path, timeout: float) -> None:
        self._errors = folder / "errors"
        self.timeout = timeout
        self.console = bytearray()
        # A connected pair: a socket that QEMU listens on can be seen for a while before it can be connected to
        self._monitor, end = socket.socketpair()
        command += ["-chardev", f"socket,id=qmp,fd={end.fileno()}", "-mon", "chardev=qmp,mode=control", "-serial", "stdio"]
        with end, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, pass_fds=[end.fileno()]
            )
        assert self.process.stdin and self.process.stdout
        self._keyboard, self._screen = self.process.stdin, self.process.stdout
        os.set_blocking(self._screen.fileno(), False)
        self._replies = self._monitor.makefile("r")
        self._replies.readline()
        self.qmp("qmp_capabilities")

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Waits for something, and reads the console meanwhile."""
        deadline = time.monotonic() + self.timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._screen, selectors.EVENT_READ)
            while not condition():
                if selector.select(0.05):
                    self.console += os.read(self._screen.fileno(), 65536)
                if KVM_GAVE_UP in self._errors.read_bytes():
                    raise Died
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise Stuck(what)

    def qmp(self, command: str, **arguments: object) -> Any:
        """What a command of the monitor returns; events that come before it are passed over."""
        request: Json = {"execute": command}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._monitor.sendall(json.dumps(request).encode())
        while True:
            line = self._replies.readline()
            if not line:
                raise Stuck(f"{command}: QEMU has ended")
            reply = json.loads(line)
            if "error" in reply:
                raise Stuck(f"{command}: {reply['error']['desc']}")
            if "return" in reply:
                return reply["return"]

    def shell(self, command: str) -> str:
        """What a command in the guest's shell prints."""
        start = len(self.console)
        self._keyboard.write(f"echo begin-$((40 + 2)); {command}; echo end-$((40 + 2))\n".encode())
        self._keyboard.flush()
        # The console echoes what is typed, sometimes twice, but not so
        said = re.compile(rb"^begin-42\r?\n(.*?)^end-42\r?\n", re.M | re.S)
        self.until(lambda: said.search(self.console, start), f"the guest's shell: {command}")
        match = said.search(self.console, start)
        assert match
        return match[1].decode(errors="replace").replace("\r", "").strip()

    def errors(self) -> str:
        return self._errors.read_text(errors="replace")

    def end(self) -> None:
        if self.process.poll() is None:
            try:
                self.qmp("quit")
            except (OSError, ValueError, Stuck):
                self.process.terminate()
        try:
            self.process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def command_line(arguments: argparse.Namespace, folder: Path) -> list[str]:
    machine = arguments.machine + f",accel=kvm,smm={'on' if arguments.smm else 'off'}"
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    command += ["-machine", machine, "-cpu", arguments.cpu, "-smp", str(arguments.smp)]
    command += ["-m", "256,slots=2,maxmem=2G"]
    if arguments.cpu_pm:
        command += ["-overcommit", "cpu-pm=on"]
    if arguments.firmware == "ovmf":
        secure = arguments.smm and arguments.machine == "q35"
        code = OVMF / ("OVMF_CODE_4M.secboot.fd" if secure else "OVMF_CODE_4M.fd")
        variables = shutil.copy(OVMF / "OVMF_VARS_4M.fd", folder / "variables")
        command += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"]
        command += ["-drive", f"if=pflash,unit=1,format=raw,file={variables}"]
        if secure:
            command += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
    else:
        command += ["-chardev", f"file,id=firmware,path={folder / 'firmware'}"]
        command += ["-device", "isa-debugcon,iobase=0x402,chardev=firmware"]
    if arguments.kernel:
        command += ["-kernel", arguments.kernel, "-initrd", arguments.initramfs]
        command += ["-append", "console=ttyS0 quiet panic=-1 memhp_default_state=online_movable"]
        command += ["-object", f"memory-backend-ram,id=resizable,size={2 * PLUGGED}"]
        command += ["-device", "virtio-mem-pci,id=resized,memdev=resizable,requested-size=0"]
    return command


def firmware_ends(machine: Machine, folder: Path) -> None:
    log = folder / "firmware"
    machine.until(
        lambda: re.search(LAST_WORDS, machine.console) or (log.exists() and re.search(LAST_WORDS, log.read_bytes())),
        "the firmware",
    )


def total_memory(machine: Machine) -> int:
    """MemTotal of the guest, in bytes."""
    return int(machine.shell("grep MemTotal /proc/meminfo").split()[1]) << 10


def wait_for_memory(machine: Machine, condition: Callable[[int], bool]) -> int:
    deadline = time.monotonic() + machine.timeout
    while not condition(total := total_memory(machine)):
        if time.monotonic() > deadline:
            raise Stuck(f"memory of the guest: {total >> 20} MiB")
        time.sleep(0.2)
    return total


def dimm(machine: Machine) -> Json:
    before = total_memory(machine)
    machine.qmp("object-add", qom_type="memory-backend-ram", id="memory0", size=PLUGGED)
    machine.qmp("device_add", driver="pc-dimm", id="dimm0", memdev="memory0")
    plugged = wait_for_memory(machine, lambda now: now >= before + PLUGGED // 2)
    machine.qmp("device_del", id="dimm0")

    def gone() -> bool:
        return all(device["data"].get("id") != "dimm0" for device in machine.qmp("query-memory-devices"))

    machine.until(gone, "unplugging")
    machine.qmp("object-del", id="memory0")
    return {"plugged": plugged - before, "after": total_memory(machine) - before}


def resize(machine: Machine, before: int, size: int) -> int:
    """What the guest has more than before, once the device and the guest agree."""
    path = "/machine/peripheral/resized"
    machine.qmp("qom-set", path=path, property="requested-size", value=size)
    machine.until(lambda: machine.qmp("qom-get", path=path, property="size") == size, f"virtio-mem at {size >> 20} MiB")
    # The device has plugged a block before the guest counts it
    return wait_for_memory(machine, lambda now: abs(now - before - size) <= COUNTED_APART) - before


def virtio_mem(machine: Machine) -> Json:
    before = total_memory(machine)
    return {"grown_by": [resize(machine, before, size) for size in (PLUGGED, 2 * PLUGGED, PLUGGED // 2, 0)]}


def migration(machine: Machine) -> Json:
    machine.shell("{ (while :; do dd if=/dev/urandom of=/busy bs=64k count=4; done) >/dev/null 2>&1 & }")
    machine.qmp("migrate", uri="exec:cat >/dev/null")
    statuses: list[str] = []

    def ended() -> bool:
        statuses.append(machine.qmp("query-migrate").get("status", ""))
        return statuses[-1] in ("completed", "failed", "cancelled")

    machine.until(ended, "the migration")
    if statuses[-1] == "completed":
        machine.qmp("cont")
    machine.shell("kill $!; wait")
    return {"status": statuses[-1]}


ACTIONS: dict[str, Callable[[Machine], Json]] = {"dimm": dimm, "virtio-mem": virtio_mem, "migration": migration}


def look(machine: Machine) -> Json:
    """What the guest knows about the machine that it is in."""
    return {
        "cpus": machine.shell("nproc"),
        "iomem": machine.shell("cat /proc/iomem"),
        "firmware_map": machine.shell("dmesg | grep -o 'BIOS-e820:.*'"),
        "file": machine.shell("sha256sum /bin/busybox"),
    }


def run(arguments: argparse.Namespace, folder: Path) -> Json:
    stats = folder / "stats.json"
    prefix = [arguments.memslot_run, f"--stats={stats}", "--"] if arguments.memslot_run else []
    report: Json = {"outcome": "finished", "seconds": {}}
    timeout = arguments.timeout * float(os.environ.get("MEMSLOT_SLOWNESS", "1"))
    machine = Machine([*prefix, *command_line(arguments, folder)], folder, timeout)
    start = time.monotonic()

    def step(name: str) -> None:
        nonlocal start
        now = time.monotonic()
        report["seconds"][name] = round(now - start, 1)
        start = now

    try:
        if arguments.kernel:
            machine.until(lambda: b"memslot-guest: shell" in machine.console, "booting Linux")
            step("boot")
            report["guest"] = look(machine)
            for name in arguments.steps:
                report[name] = ACTIONS[name](machine)
                step(name)
            report["guest_after"] = look(machine)
        else:
            firmware_ends(machine, folder)
            step("boot")
        report["status"] = machine.qmp("query-status")["status"]
    except Died:
        report["outcome"] = "died"
    except Stuck as stuck:
        report["outcome"] = f"stuck: {stuck}"
    finally:
        machine.end()
    if report["outcome"] != "finished":
        report["said"] = machine.errors()[-2000:] + machine.console.decode(errors="replace")[-2000:]
    if arguments.memslot_run:
        report["memslot"] = json.loads(stats.read_text())
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", choices=["q35", "pc"], default="q35", help="default: %(default)s")
    parser.add_argument("--firmware", choices=["seabios", "ovmf"], default="seabios", help="default: %(default)s")
    parser.add_argument("--smm", action="store_true", help="the machine has system management mode")
    parser.add_argument("--smp", type=int, default=1, help="vCPUs; default: %(default)s")
    parser.add_argument("--cpu", default="host", help="model; default: %(default)s")
    parser.add_argument("--cpu-pm", action="store_true", help="vCPUs that halt stay in the guest")
    parser.add_argument("--kernel", help="boot this Linux; else the firmware finds nothing to boot")
    parser.add_argument("--initramfs", help="its initramfs, which ends in a shell on the serial console")
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=[], help="what to do once Linux is up")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for each thing, on a quiet machine; default: %(default)s")
    parser.add_argument("--memslot-run", metavar="PATH", help="run QEMU under this memslot-run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(run(arguments, Path(name))))


if __name__ == "__main__":
    main()
