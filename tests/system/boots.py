#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Boots Debian's own, unmodified QEMU again and again; runs in the test VM.

SeaBIOS opens and closes ranges of memory below 1 MiB while the other vCPUs
execute in them: a QEMU that changes one memslot after the other makes holes
there, and KVM gives the VM up with an internal error.

Prints one JSON object per boot: outcome ("finished": SeaBIOS found nothing to
boot from, as it must; "died": KVM internal error; "stuck": QEMU ended, or the
firmware said nothing for too long), seconds, and with --memslot-run what
memslot-run counted.  Tells on stderr how far the firmware of a boot that takes
long has come.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import tempfile
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from qemu_process import KVM_GAVE_UP, Json, on_this_machine

# What comes after QEMU's own words.
MACHINE = ["-m", "128", "-display", "none", "-net", "none"]
LAST_WORDS = b"No bootable device."
POLL_SECONDS = 0.05
TELL_SECONDS = 2.0


def boot(qemu_words: Sequence[str], patience: float, folder: Path, cpu_pm: bool = True) -> tuple[str, float, str]:
    """One boot of the QEMU that some words start: its outcome, its seconds, and what it said.

    It may take as long as it gets on: patience is for how long the firmware may say nothing new, in seconds on a quiet
    machine.
    """
    patience = on_this_machine(patience)
    firmware, said = folder / "firmware", folder / "qemu"
    command = [*qemu_words, *MACHINE, "--overcommit", f"cpu-pm={'on' if cpu_pm else 'off'}"]
    command += ["-monitor", "none", "-serial", "none", "-debugcon", f"file:{firmware}"]
    command += ["-global", "isa-debugcon.iobase=0x402"]
    start = moved = told = time.monotonic()
    words = b""
    with said.open("wb") as output:
        qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        outcome = ""
        while not outcome:
            time.sleep(POLL_SECONDS)
            ended = qemu.poll() is not None
            before, words = words, firmware.read_bytes() if firmware.exists() else b""
            now = time.monotonic()
            if words != before:
                moved = now
                if now - told > TELL_SECONDS:
                    told = now
                    print(f"firmware: {len(words)} bytes", file=sys.stderr, flush=True)
            if KVM_GAVE_UP in said.read_bytes():
                outcome = "died"
            elif LAST_WORDS in words:
                outcome = "finished"
            elif ended or now - moved > patience:
                outcome = "stuck"
        seconds = time.monotonic() - start
        qemu.send_signal(signal.SIGTERM)
        try:
            qemu.wait(patience)
        except subprocess.TimeoutExpired:
            qemu.kill()
            qemu.wait()
    return outcome, seconds, said.read_text(errors="replace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boots", type=int, default=1, help="at most; default: %(default)s")
    parser.add_argument("--seconds", type=float, help="begin no boot later than that, once there were --least")
    parser.add_argument("--least", type=int, default=1, metavar="BOOTS", help="with --seconds; default: %(default)s")
    parser.add_argument(
        "--patience",
        type=float,
        default=30,
        metavar="SECONDS",
        help="a boot is stuck if its firmware says nothing for this long, on a quiet machine; default: %(default)s",
    )
    parser.add_argument("--no-cpu-pm", action="store_true", help="vCPUs that halt leave the guest")
    parser.add_argument("--memslot-run", metavar="PATH", help="run QEMU under this memslot-run")
    arguments = parser.parse_args()

    start = time.monotonic()
    for done in range(arguments.boots):
        if arguments.seconds is not None and done >= arguments.least and time.monotonic() - start > arguments.seconds:
            break
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            stats = folder / "stats.json"
            prefix = [arguments.memslot_run, f"--stats={stats}", "--"] if arguments.memslot_run else []
            qemu = [*prefix, "qemu-system-x86_64", "-smp", "4", "-accel", "kvm"]
            outcome, seconds, said = boot(qemu, arguments.patience, folder, not arguments.no_cpu_pm)
            result: Json = {"outcome": outcome, "seconds": round(seconds, 3)}
            if arguments.memslot_run:
                result["memslot"] = json.loads(stats.read_text())
            if outcome != "finished":
                result["said"] = said[-2000:]
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
