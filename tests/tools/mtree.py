#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Boots stock QEMU until its firmware is done, and prints where its memory is; runs in the test VM.

    mtree.py COMMAND [ARGUMENT]...

COMMAND is run while QEMU is there, the word PID standing for it.  Prints one JSON object: told, what COMMAND
printed; maps, QEMU's own view: by the name of its address space, first and last address and the name of each
range that it gave to KVM ("info mtree -f").
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TIMEOUT = 90 * float(os.environ.get("MEMSLOT_SLOWNESS", "1"))
VIEW = re.compile(r"^FlatView #\d+\n(.*?)(?:\n\n|\Z)", re.M | re.S)
RANGE = re.compile(r"^  ([0-9a-f]+)-([0-9a-f]+) \(prio \d+, \w+\): (\S+)(?: @[0-9a-f]+)? KVM$", re.M)


def ask(monitor: Path, question: str) -> str:
    """What QEMU's monitor answers."""
    with socket.socket(socket.AF_UNIX) as to:
        to.connect(str(monitor))
        answer = b""
        while not answer.endswith(b"(qemu) "):
            answer += to.recv(65536)
        to.sendall(question.encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n(qemu) "):
            answer += to.recv(65536)
    return answer.decode().replace("\r", "")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        monitor, firmware = Path(name) / "monitor", Path(name) / "firmware"
        qemu = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "kvm", "-m", "256", "-display", "none", "-net", "none", "-serial", "none",
             "-monitor", f"unix:{monitor},server,nowait",
             "-debugcon", f"file:{firmware}", "-global", "isa-debugcon.iobase=0x402"],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + TIMEOUT
            while not firmware.exists() or b"No bootable device." not in firmware.read_bytes():
                assert qemu.poll() is None and time.monotonic() < deadline, "QEMU did not boot"
                time.sleep(0.1)
            command = [str(qemu.pid) if word == "PID" else word for word in sys.argv[1:]]
            told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            maps = {}
            for view in VIEW.findall(ask(monitor, "info mtree -f")):
                ranges = [(int(first, 16), int(last, 16), what) for first, last, what in RANGE.findall(view)]
                for space in re.findall(r'^ AS "([^"]+)"', view, re.M):
                    maps[space] = ranges
        finally:
            qemu.kill()
            qemu.wait()
    print(json.dumps({"told": told, "maps": maps}))


if __name__ == "__main__":
    main()
