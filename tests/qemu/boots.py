#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Boots Debian's own, unmodified QEMU again and again; runs in the test VM.

SeaBIOS opens and closes ranges of memory below 1 MiB while the other vCPUs
execute in them: a QEMU that changes one memslot after the other makes holes
there, and KVM gives the VM up with an internal error.

Prints one JSON object per boot: outcome ("finished": SeaBIOS found nothing to
boot from, as it must; "died": KVM internal error; "stuck"), seconds, and with
--memslot-run what memslot-run counted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

QEMU = [
    "qemu-system-x86_64",
    "--overcommit", "cpu-pm=on",
    "-smp", "4",
    "-accel", "kvm",
    "-m", "128",
    "-display", "none",
    "-net", "none",
]  # fmt: skip
LAST_WORDS = b"No bootable device."
KVM_GAVE_UP = b"KVM internal error"
POLL_SECONDS = 0.05


def boot(prefix: list[str], timeout: float, folder: Path) -> tuple[str, float, str]:
    """One boot: its outcome, its seconds, and what QEMU said."""
    firmware, said = folder / "firmware", folder / "qemu"
    command = [*prefix, *QEMU, "-monitor", "none", "-serial", "none", "-debugcon", f"file:{firmware}"]
    command += ["-global", "isa-debugcon.iobase=0x402"]
    start = time.monotonic()
    with said.open("wb") as output:
        qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        outcome = ""
        while not outcome:
            time.sleep(POLL_SECONDS)
            if KVM_GAVE_UP in said.read_bytes():
                outcome = "died"
            elif firmware.exists() and LAST_WORDS in firmware.read_bytes():
                outcome = "finished"
            elif time.monotonic() - start > timeout or qemu.poll() is not None:
                outcome = "stuck"
        seconds = time.monotonic() - start
        qemu.send_signal(signal.SIGTERM)
        try:
            qemu.wait(20)
        except subprocess.TimeoutExpired:
            qemu.kill()
            qemu.wait()
    return outcome, seconds, said.read_text(errors="replace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boots", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--timeout", type=float, default=60, help="seconds per boot, on Debian's kernels; default: %(default)s")
    parser.add_argument("--memslot-run", metavar="PATH", help="run QEMU under this memslot-run")
    arguments = parser.parse_args()

    for _ in range(arguments.boots):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            stats = folder / "stats.json"
            prefix = [arguments.memslot_run, f"--stats={stats}", "--"] if arguments.memslot_run else []
            timeout = arguments.timeout * float(os.environ.get("MEMSLOT_SLOWNESS", "1"))
            outcome, seconds, said = boot(prefix, timeout, folder)
            result: dict[str, Any] = {"outcome": outcome, "seconds": round(seconds, 3)}
            if arguments.memslot_run:
                result["memslot"] = json.loads(stats.read_text())
            if outcome == "stuck":
                result["said"] = said[-2000:]
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
