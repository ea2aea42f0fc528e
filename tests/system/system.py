#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Runs a QEMU through what changes memslots: Debian's own, unmodified, or another; runs in the test VM.

Firmware alone, perhaps reset many times, or Linux up to a shell and then, one
after the other, what --steps names (steps.py).  The guest is asked over its
serial console what it sees.

Prints one JSON object: outcome ("finished", "died": KVM internal error,
"ended": QEMU did, with exit_status and what it said, or what it was stuck in),
seconds per step, what the guest and QEMU said, with --memslot-run what
memslot-run counted and with --trace what QEMU traced.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import tempfile
import time
from pathlib import Path

from qemu_process import Died, Ended, Json, Machine, Stuck, counted, on_this_machine, tracing
from steps import ACTIONS, BAR_FILE, BAR_SIZE, MEMORY, PLUGGED

OVMF = Path("/usr/share/OVMF")
# SeaBIOS finds nothing to boot from; OVMF has a shell of its own
LAST_WORDS = rb"No bootable device|No bootable option|Shell>"
# Bytes that the firmware says from one reset to the next, in turn: it is at another place each time, on any machine
RESET_AFTER = (50, 2000, 400, 1200, 100, 2600, 700, 1600)


def command_line(arguments: argparse.Namespace, folder: Path) -> list[str]:
    command = shlex.split(arguments.qemu)
    command += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    command += ["-machine", f"{arguments.machine},smm={'on' if arguments.smm else 'off'}", "-accel", arguments.accel]
    if arguments.next_accel:
        command += ["-accel", arguments.next_accel]
    command += ["-cpu", arguments.cpu, "-smp", str(arguments.smp)]
    command += ["-m", f"{MEMORY >> 20},slots=2,maxmem=2G"]
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
    if arguments.bar:
        command += ["-object", f"memory-backend-file,id=shared,size={BAR_SIZE},mem-path={folder / BAR_FILE},share=on"]
        command += ["-device", "ivshmem-plain,memdev=shared,master=on"]
    if arguments.vga:
        command += ["-device", "VGA"]
    if arguments.trace:
        command += tracing(folder / "trace")
    return command


def firmware_ends(machine: Machine, folder: Path) -> None:
    log = folder / "firmware"
    machine.until(
        lambda: re.search(LAST_WORDS, machine.console) or (log.exists() and re.search(LAST_WORDS, log.read_bytes())),
        "the firmware",
    )


def reset(machine: Machine, folder: Path, times: int) -> Json:
    """Resets the machine again and again, and waits for the firmware's end after the last time.

    How much the guest writes is measured meanwhile, so that its memory is logged for a part of the time.
    """
    log = folder / "firmware"

    def said_since(start: int, least: int) -> bool:
        said = log.read_bytes()[start:]
        return len(said) >= least or re.search(LAST_WORDS, said) is not None

    machine.qmp("set-action", reboot="reset")
    for turn in range(times):
        if machine.qmp("query-dirty-rate")["status"] != "measuring":
            machine.qmp("calc-dirty-rate", calc_time=1, mode="dirty-bitmap")
        start = log.stat().st_size
        machine.qmp("system_reset")
        machine.until(lambda: said_since(start, RESET_AFTER[turn % len(RESET_AFTER)]), f"the firmware after reset {turn}")
    start = log.stat().st_size
    machine.qmp("system_reset")
    machine.until(lambda: re.search(LAST_WORDS, log.read_bytes()[start:]), "the firmware after the last reset")
    return {"times": times + 1}


def look(machine: Machine) -> Json:
    """What the guest knows about the machine that it is in."""
    return {
        "cpus": machine.shell("nproc"),
        "iomem": machine.shell("cat /proc/iomem"),
        "firmware_map": machine.shell("dmesg | grep -o 'BIOS-e820:.*'"),
        "file": machine.shell("sha256sum /bin/busybox"),
    }


def session(machine: Machine, arguments: argparse.Namespace, folder: Path, report: Json) -> None:
    """All that the machine is to go through."""
    start = time.monotonic()

    def step(name: str) -> None:
        nonlocal start
        now = time.monotonic()
        report["seconds"][name] = round(now - start, 1)
        start = now

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
        if arguments.resets:
            report["resets"] = reset(machine, folder, arguments.resets - 1)
            step("resets")
    report["status"] = machine.qmp("query-status")["status"]


def run(arguments: argparse.Namespace, folder: Path) -> Json:
    stats = folder / "stats.json"
    prefix = [arguments.memslot_run, f"--stats={stats}", "--"] if arguments.memslot_run else []
    report: Json = {"outcome": "finished", "seconds": {}}
    machine = Machine([*prefix, *command_line(arguments, folder)], folder, on_this_machine(arguments.timeout))
    try:
        machine.begin()
        session(machine, arguments, folder, report)
    except Died:
        report["outcome"] = "died"
    except Ended as ended:
        report["outcome"], report["last_words"] = "ended", str(ended)[-2000:]
    except Stuck as stuck:
        report["outcome"] = f"stuck: {stuck}"
    finally:
        machine.end()
    report["exit_status"] = machine.process.returncode
    report["errors"] = machine.errors()[-4000:]
    if report["outcome"] != "finished":
        report["said"] = machine.console.decode(errors="replace")[-2000:]
    if arguments.memslot_run:
        report["memslot"] = json.loads(stats.read_text())
    if arguments.trace:
        report["traced"] = counted(folder / "trace")
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
    parser.add_argument("--steps", nargs="*", choices=list(ACTIONS), default=[], help="what to do once Linux is up")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for each thing, on a quiet machine; default: %(default)s")
    parser.add_argument("--qemu", metavar="WORDS", default="qemu-system-x86_64", help="its command; default: %(default)s")
    parser.add_argument("--accel", default="kvm", help="with properties; default: %(default)s")
    parser.add_argument("--next-accel", help="what QEMU shall use if that one fails")
    parser.add_argument("--bar", action="store_true", help="the machine has a device with memory of its own")
    parser.add_argument("--vga", action="store_true", help="the machine has a display, whose memory is logged")
    parser.add_argument("--resets", type=int, default=0, metavar="N", help="reset the machine so often, without Linux")
    parser.add_argument("--trace", action="store_true", help="count what QEMU traces; for one that has contrib/qemu")
    parser.add_argument("--memslot-run", metavar="PATH", help="run QEMU under this memslot-run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(run(arguments, Path(name))))


if __name__ == "__main__":
    main()
