# SPDX-License-Identifier: GPL-2.0
"""A QEMU that runs: its serial console with a shell behind it, its monitor, and what it traces."""

from __future__ import annotations

import json
import os
import re
import selectors
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

KVM_GAVE_UP = b"KVM internal error"
# What contrib/qemu adds to its trace, and each memslot that it changes one by one.
TRACED = ("kvm_memslot_*", "kvm_region_commit", "kvm_set_user_memory")
STRATEGIES = ("nothing", "fenced", "parked")

Json = dict[str, Any]


def on_this_machine(seconds: float) -> float:
    """A time for a quiet machine and Debian's kernels, in the test VM, which says how much slower it is."""
    return seconds * float(os.environ.get("MEMSLOT_SLOWNESS", "1"))


class Stuck(Exception):
    """Something did not come in time; the message says what."""


class Died(Exception):
    """KVM gave the guest up."""


class Ended(Exception):
    """A QEMU has ended by itself; the message is what it said."""


class Machine:
    """A running QEMU: its serial console and its monitor."""

    def __init__(self, command: list[str], folder: Path, timeout: float) -> None:
        self._errors = folder / "errors"
        self.command = list(command)
        self.folder = folder
        self.timeout = timeout
        self.console = bytearray()
        # A connected pair: a socket that QEMU listens on can be seen for a while before it can be connected to
        self._monitor, end = socket.socketpair()
        command = [*command, "-chardev", f"socket,id=qmp,fd={end.fileno()}", "-mon", "chardev=qmp,mode=control"]
        command += ["-serial", "stdio"]
        with end, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, pass_fds=[end.fileno()]
            )
        assert self.process.stdin and self.process.stdout
        self._keyboard, self._screen = self.process.stdin, self.process.stdout
        os.set_blocking(self._screen.fileno(), False)
        self._replies = self._monitor.makefile("r")

    def begin(self) -> None:
        """Greets the monitor; the rest comes after that."""
        self._reply()
        self.qmp("qmp_capabilities")

    def _reply(self) -> Json:
        try:
            line = self._replies.readline()
        except ConnectionError:
            line = ""
        if not line:
            raise Ended(self.errors())
        return json.loads(line)  # type: ignore[no-any-return]

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
                if self.process.poll() is not None:
                    raise Ended(self.errors())
                if time.monotonic() > deadline:
                    raise Stuck(what)

    def qmp(self, command: str, **arguments: object) -> Any:
        """What a command of the monitor returns; events that come before it are passed over."""
        request: Json = {"execute": command}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            self._monitor.sendall(json.dumps(request).encode())
        except ConnectionError:
            raise Ended(self.errors()) from None
        while True:
            reply = self._reply()
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
            except (OSError, ValueError, Stuck, Ended):
                self.process.terminate()
        try:
            self.process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def tracing(trace: Path) -> list[str]:
    """Options for a QEMU that counted() shall be asked about."""
    return [*(word for event in TRACED for word in ("-trace", event)), "-D", str(trace)]


def counted(trace: Path) -> Json:
    """What a QEMU that was told to trace has done to memslots.

    commits and how they were made (nothing, fenced, parked, failed), entries and bitmaps that they had; calls:
    KVM_SET_USER_MEMORY_REGION; retried: commits that were tried again with vCPUs kept out of KVM; one_by_one: those that
    were made by calls instead; inhibited: transactions for which vCPUs were kept out.
    """
    names = ("commits", *STRATEGIES, "failed", "entries", "bitmaps", "calls", "retried", "one_by_one", "inhibited")
    found: Counter[str] = Counter(dict.fromkeys(names, 0))
    for line in trace.read_text(errors="replace").splitlines():
        # Perhaps with a time and a thread before it
        words = line.split()
        event = next((word for word in words if word.startswith("kvm_")), "")
        fields = dict(word.split("=", 1) for word in words if "=" in word)
        if event == "kvm_memslot_commit":
            found["commits"] += 1
            found[STRATEGIES[int(fields["strategy"])] if fields["ret"] == "0" else "failed"] += 1
            found["entries"] += int(fields["entries"])
            found["bitmaps"] += int(fields["bitmaps"])
        elif event == "kvm_set_user_memory":
            found["calls"] += 1
        elif event == "kvm_memslot_retry":
            found["retried"] += 1
        elif event == "kvm_memslot_one_by_one":
            found["one_by_one"] += 1
        elif event == "kvm_region_commit":
            found["inhibited"] += int(fields["inhibited"])
    return dict(found)
