# SPDX-License-Identifier: GPL-2.0
"""The test VM in QEMU, with the host's virtualization or with AMD's, emulated."""

from __future__ import annotations

import os
import selectors
import socket
import time

from emulator import emulator
from initramfs import sharing
from kernels import Kernel
from machine import Machine, kernel_parameters

# agent.c looks for it.
PORT_NAME = "memslot.agent"


class QEMU(Machine):
    """The agent is at a port of its own, and the monitor can send an NMI."""

    def __init__(self, kernel: Kernel, cpus: int, memory: int, emulated: bool, counting: bool, slowness: int) -> None:
        super().__init__()
        # With -no-reboot, that ends QEMU.  The NMI of provoke() is unknown.
        append = f"{kernel_parameters(kernel, slowness)} unknown_nmi_panic"
        command, environment = ["qemu-system-x86_64"], None
        if emulated:
            qemu = emulator()
            command, environment = qemu.command, qemu.environment
            command += ["-accel", "tcg,thread=single" if counting else qemu.accelerator, "-cpu", "max"]
        else:
            command += ["-accel", "kvm", "-cpu", "host"]
        if counting:
            # An instruction is a nanosecond.  Linux does not trust the counter of a processor that it cannot compare.
            command += ["-icount", "shift=0,sleep=off"]
            append += " tsc=reliable"
        sockets = [socket.socketpair() for _ in range(3)]
        (self._agent, agent), (console, serial), (self._monitor, monitor) = sockets
        for ours in (self._agent, console, self._monitor):
            self._resources.enter_context(ours)
        self._serial = console.fileno()
        image = os.memfd_create("initramfs")
        try:
            with open(image, "wb", closefd=False) as file:
                file.write(sharing(kernel))
            command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
            command += ["-smp", str(cpus), "-m", str(memory)]
            command += ["-kernel", str(kernel.image), "-initrd", f"/proc/self/fd/{image}", "-append", append]
            command += ["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"]
            command += ["-device", "virtio-9p-pci,fsdev=root,mount_tag=host"]
            command += ["-chardev", f"socket,id=serial,fd={serial.fileno()}", "-serial", "chardev:serial"]
            command += ["-chardev", f"socket,id=monitor,fd={monitor.fileno()}", "-mon", "chardev=monitor"]
            command += ["-chardev", f"socket,id=agent,fd={agent.fileno()}", "-device", "virtio-serial-pci"]
            command += ["-device", f"virtserialport,chardev=agent,name={PORT_NAME}"]
            self._launch(command, environment, (agent.fileno(), serial.fileno(), monitor.fileno(), image))
        except BaseException:
            self._resources.close()
            raise
        finally:
            for theirs in (agent, serial, monitor):
                theirs.close()
            os.close(image)
        self._agent.setblocking(False)
        os.set_blocking(self._serial, False)

    def interrupt(self) -> None:
        """Sends an NMI, at which the kernel panics."""
        self._monitor.sendall(b"nmi\n")

    def provoke(self) -> None:
        self.interrupt()
        deadline = time.monotonic() + 120
        while (left := deadline - time.monotonic()) > 0:
            with selectors.DefaultSelector() as selector:
                selector.register(self._serial, selectors.EVENT_READ)
                if selector.select(left) and not self._read_console():
                    return
