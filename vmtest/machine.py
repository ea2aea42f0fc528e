# SPDX-License-Identifier: GPL-2.0
"""A machine that an emulator runs, whichever emulator that is: the agent in it, its console, and a process."""

from __future__ import annotations

import os
import selectors
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import IO

from kernels import KERNELS, Kernel

CONSOLE_BYTES = 1 << 18

# agent.c has the other side of these.
FRAME = struct.Struct("<II")
FRAME_RUN, FRAME_INPUT, FRAME_RESIZE = 1, 2, 3
FRAME_READY, FRAME_STDOUT, FRAME_STDERR, FRAME_KMSG, FRAME_END = 1, 2, 3, 4, 5


class Lost(Exception):
    """The VM died, or did not answer in time."""


def kernel_parameters(kernel: Kernel, slowness: int) -> str:
    """What every test VM's kernel is told.

    The limits for how long something may stall before it complains are longer than its own, which are for a machine that
    runs all the time; this one's processors wait for others of the host, and half a minute of that is no fault of the
    kernel's.
    """
    return (
        # A panic reboots at once, and a machine that boots again is a machine that ends.
        "console=ttyS0 loglevel=5 log_buf_len=4M printk.devkmsg=on panic=-1 oops=panic "
        # To KCSAN a race is a warning, and most are not the module's
        f"panic_on_warn={int(not KERNELS[kernel.version].finds_races)} "
        f"rcupdate.rcu_cpu_stall_timeout={min(21 * slowness, 300)} watchdog_thresh={min(10 * slowness, 60)} "
        f"workqueue.watchdog_thresh={30 * slowness} sysctl.kernel.hung_task_timeout_secs={120 * slowness} "
        # Whether the timer ticks is counted during a busy wait, in which a busy host may let nothing tick: a panic.
        "no_timer_check"
    )


class Machine:
    """A running machine.

    Who makes one starts its process, and says which ends of the agent's stream and of the console are ours.
    """

    # What KVM in this machine is loaded with, before what is asked for.
    kvm_parameters: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.console = bytearray()
        self.outgoing = bytearray()
        self._incoming = bytearray()
        self._resources = ExitStack()
        self._errors: IO[bytes] = self._resources.enter_context(tempfile.TemporaryFile())
        self._agent: socket.socket
        self._serial: int

    def _launch(self, command: Sequence[str], environment: Mapping[str, str] | None, keep: Sequence[int]) -> None:
        self._process = subprocess.Popen(
            # setpriv becomes the emulator: the process dies when this thread does
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            pass_fds=keep,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The emulator's process."""
        return self._process.pid

    def wait(self, timeout: float) -> None:
        """Until the emulator has ended by itself."""
        self._process.wait(timeout)

    def send(self, kind: int, payload: bytes = b"") -> None:
        self.outgoing += FRAME.pack(kind, len(payload)) + payload

    def receive(self, deadline: float | None, sources: Mapping[int, Callable[[], None]] | None = None) -> tuple[int, bytes]:
        """The agent's next frame.

        Until it comes, also sends what is to be sent, reads the console, and calls for file descriptors that
        can be read.
        """
        while True:
            if len(self._incoming) >= FRAME.size:
                kind, length = FRAME.unpack_from(self._incoming)
                if len(self._incoming) >= FRAME.size + length:
                    payload = bytes(self._incoming[FRAME.size : FRAME.size + length])
                    del self._incoming[: FRAME.size + length]
                    return kind, payload
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise Lost("hung")
            self._turn(left, sources or {})

    def _turn(self, timeout: float | None, sources: Mapping[int, Callable[[], None]]) -> None:
        with selectors.DefaultSelector() as selector:
            write = selectors.EVENT_WRITE if self.outgoing else 0
            selector.register(self._agent, selectors.EVENT_READ | write)
            selector.register(self._serial, selectors.EVENT_READ)
            for source in sources:
                selector.register(source, selectors.EVENT_READ)
            for key, events in selector.select(timeout):
                if key.fileobj is self._agent:
                    self._talk(events)
                elif key.fileobj == self._serial:
                    self._read_console()
                    self._listen()
                else:
                    sources[key.fd]()

    def _listen(self) -> None:
        """Lost, if the console says that this is the machine's end, for an emulator that does not end with it."""

    def _talk(self, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                del self.outgoing[: self._agent.send(self.outgoing[:65536])]
            if events & selectors.EVENT_READ:
                data = self._agent.recv(1 << 18)
                if not data:
                    raise Lost("died")
                self._incoming += data
        except ConnectionError as error:
            raise Lost("died") from error

    def _read_console(self) -> bool:
        try:
            data = os.read(self._serial, 65536)
        except (BlockingIOError, ConnectionError):
            return False
        self.console += data
        del self.console[:-CONSOLE_BYTES]
        return bool(data)

    def provoke(self) -> None:
        """Makes a hung kernel say on its console where it hangs, if the emulator has a way to."""

    def end(self) -> str:
        """Kills the emulator; returns its errors, and the console since that was last cleared."""
        self._process.kill()
        self._process.wait()
        while self._read_console():
            pass
        self._errors.seek(0)
        errors = self._errors.read()
        self._resources.close()
        return (errors + self.console).decode(errors="replace").replace("\r", "")
