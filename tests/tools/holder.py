#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Runs a command while virtual machines with known slots exist; runs in the test VM.

    holder.py LAYOUTS COMMAND [ARGUMENT]...

LAYOUTS is JSON: a list of VMs, each a list of slots, each an object with slot, address_space, guest_phys_addr,
memory_size, flags.  They are made by KVM's own ioctl.  The last VM gets a second file descriptor.  In the
command's words PID stands for the process that has the VMs.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
import subprocess
import sys
from ctypes import addressof, c_char

MAP_NORESERVE = 0x4000  # not in Python's mmap
KVM_CREATE_VM = 0xAE01
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
REGION = struct.Struct("<IIQQQ")


def main() -> int:
    layouts, *command = sys.argv[1:]
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    memory = []
    vm = -1
    for slots in json.loads(layouts):
        vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
        # 0 is standard output to come
        assert vm > 2
        for slot in slots:
            # Nothing is ever touched, so it may be large
            memory.append(mmap.mmap(-1, slot["memory_size"], flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE))
            region = REGION.pack(
                slot["slot"] | slot["address_space"] << 16,
                slot["flags"],
                slot["guest_phys_addr"],
                slot["memory_size"],
                addressof(c_char.from_buffer(memory[-1])),
            )
            fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, region)
    os.dup2(vm, 100)
    return subprocess.run([str(os.getpid()) if word == "PID" else word for word in command], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
