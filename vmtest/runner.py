# SPDX-License-Identifier: GPL-2.0
"""Boots a virtual machine and runs commands in it.

The VM's root is the host's root, read-only, below an overlay in the VM's memory: commands see the host's
files at the same paths, and what they write is gone when the VM ends.  /tmp, /run, /dev, /proc and /sys are
the VM's own; a project that is below one of them is in the VM all the same.  The VM caches what it has read: boot a
new one after changing a file on the host.

A VM with Intel's virtualization, on a host that has not, runs in another emulator, which shows it none of the host's
files: it has what make builds for it, the files that are asked for, and the commands of busybox.
"""

from __future__ import annotations

import enum
import fcntl
import os
import re
import shlex
import signal
import struct
import subprocess
import tempfile
import termios
import time
import tty
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bochs import MOST_MEMORY, Bochs
from debian import PROJECT, DebianError, setup_host
from initramfs import AGENT
from kernel_log import COMPLAINT
from kernels import KERNELS, Kernel, kernel
from machine import (
    FRAME_END, FRAME_INPUT, FRAME_KMSG, FRAME_READY, FRAME_RESIZE, FRAME_RUN, FRAME_STDOUT, Lost, Machine,
)  # fmt: skip
from qemu import QEMU
from races import MODULE, Races, SourceLines

__all__ = ["VM", "VMError", "DebianError", "Outcome", "Result", "hardware_virtualization", "DEFAULT_KERNEL", "VENDORS"]

HERE = Path(__file__).resolve().parent

# Whose virtualization a VM has, and what the processor calls it.
VENDORS = {"amd": "svm", "intel": "vmx"}

DEFAULT_KERNEL = next(iter(KERNELS))
DEFAULT_MEMORY = 2048  # MiB
LEAST_MEMORY = 256
# Limits only end what hangs: they are for a quiet machine, and hold on one that is busy or slow, which has more.
BUSY_SLOWNESS = 5
CHECKING_SLOWNESS = 6  # how much longer again all may take on a kernel that checks everything
DEFAULT_TIMEOUT = 120.0  # seconds, of a command
BOOT_TIMEOUT = 180.0
# The agent gives up on a command that cannot be killed 60 s after its timeout; one that says nothing by
# then is hung, and the VM with it.
ANSWER_TIMEOUT = 180.0

# agent.c has the other side of these, too.
RUN = struct.Struct("<IIIII")
WINSIZE = struct.Struct("<HHHH")
END = struct.Struct("<II")
END_EXITED, END_KILLED, END_TIMED_OUT, END_NOT_STARTED, END_NO_DIRECTORY = 0, 1, 2, 3, 4

MARKER = "memslot-vm: "

# Prints what kmemleak finds, and forgets it.  It does not look at what is younger than five seconds, nor at what has
# changed since it looked last.  A pointer may be on its way from one place to another: what is lost stays lost.
FIND_LEAKS = """
cd /sys/kernel/debug && sleep 6 || exit
scan() { echo scan > kmemleak && leaks=$(cat kmemleak); }
scan && scan || exit
if [ -n "$leaks" ]; then scan || exit; fi
echo "$leaks"
echo clear > kmemleak
"""


class VMError(Exception):
    """The VM cannot be had; the message says why."""


class Outcome(enum.Enum):
    """How a command ended."""

    OK = "ok"
    FAILED = "failed"  # there is a status, and it is not 0
    TIMED_OUT = "timed out"
    LOST = "VM lost"  # the VM died or hung, there is no status


@dataclass
class Result:
    """What came of a command."""

    command: str
    outcome: Outcome
    status: int | None  # as in a shell: 128 + signal if one killed it, 127 if it could not be started
    reason: str  # how it ended, for people
    stdout: str
    stderr: str
    output: str  # both, in the order they came
    kernel_log: list[str]  # since the end of the command before
    complaints: list[str]  # lines of kernel_log or console that must not be there
    console: str  # last words of a lost VM
    seconds: float

    def report(self) -> str:
        """All that helps to find out what went wrong."""
        parts = [f"{self.command}: {self.reason}, after {self.seconds:.1f} s"]
        if self.output:
            parts.append(f"--- output\n{self.output.rstrip()}")
        if self.kernel_log and (self.complaints or self.outcome is not Outcome.OK):
            parts.append("--- kernel log\n" + "\n".join(self.kernel_log[-200:]))
        if self.console:
            parts.append(f"--- console\n{self.console.rstrip()}")
        return "\n".join(parts)


def hardware_virtualization() -> str | None:
    """What the host's KVM can give a guest: "svm", "vmx" or nothing.

    Some hosts have a /dev/kvm that gives neither; stock kernels hang under it.
    """
    KVM_GET_SUPPORTED_CPUID = 0xC008AE05
    header, entry = struct.Struct("<II"), struct.Struct("<7I12x")
    try:
        with open("/dev/kvm", "rb", buffering=0) as device:
            buffer = bytearray(header.size + 256 * entry.size)
            header.pack_into(buffer, 0, 256, 0)
            fcntl.ioctl(device, KVM_GET_SUPPORTED_CPUID, buffer)
    except OSError:
        return None
    for index in range(header.unpack_from(buffer)[0]):
        function, _, _, _, _, ecx, _ = entry.unpack_from(buffer, header.size + index * entry.size)
        if function == 1 and ecx & 1 << 5:
            return "vmx"
        if function == 0x80000001 and ecx & 1 << 2:
            return "svm"
    return None


def _build_agent() -> None:
    source = HERE / "agent.c"
    if AGENT.exists() and AGENT.stat().st_mtime >= source.stat().st_mtime:
        return
    AGENT.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=AGENT.parent) as directory:
        new = Path(directory) / "agent"
        command = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-static", "-o", str(new), str(source)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise VMError(f"{shlex.join(command)}:\n{done.stdout}")
        new.rename(AGENT)


@dataclass
class _Command:
    """What the agent is asked to run, and what came of it so far."""

    argv: Sequence[str]
    timeout: float | None = DEFAULT_TIMEOUT
    stdin: bytes = b""
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = str(PROJECT)
    on_stdout: Callable[[bytes], None] | None = None
    on_stderr: Callable[[bytes], None] | None = None
    terminal: os.terminal_size | None = None
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    output: bytearray = field(default_factory=bytearray)

    def request(self, serial: int) -> bytes:
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            **self.env,
        }
        strings = [self.cwd, *self.argv, *(f"{name}={value}" for name, value in environment.items())]
        for string in strings:
            if "\0" in string:
                raise ValueError(f"NUL byte in {string!r}")
        milliseconds = 0xFFFFFFFF if self.timeout is None else int(self.timeout * 1000)
        size = self.terminal or os.terminal_size((0, 0))
        return (
            RUN.pack(serial, milliseconds, self.terminal is not None, len(self.argv), len(environment))
            + WINSIZE.pack(size.lines, size.columns, 0, 0)
            + b"".join(os.fsencode(string) + b"\0" for string in strings)
        )

    def take(self, kind: int, data: bytes) -> None:
        stream, callback = (self.stdout, self.on_stdout) if kind == FRAME_STDOUT else (self.stderr, self.on_stderr)
        if self.terminal is None:
            stream += data
            self.output += data
        if callback:
            callback(data)


class VM:
    """A virtual machine that runs commands, one at a time.

    It boots when the first command needs it, and again after it was lost.  No process outlives the command
    that started it.  Use it from one thread: the emulator dies with the thread that booted it.
    """

    def __init__(
        self,
        kernel_version: str = DEFAULT_KERNEL,
        *,
        cpus: int | None = None,
        memory: int = DEFAULT_MEMORY,
        module: bool = False,
        vendor: str | None = None,
        kvm: str | None = None,
        files: Iterable[Path] = (),
        counting: bool = False,
        answer_timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        """module loads KVM and memslot.ko; kvm loads KVM, with these parameters.

        vendor is whose virtualization it has; None: what this machine has, or else AMD's.  Parameters are the vendor's
        (npt=0, ept=0) or, with its name before them, those of kvm itself (kvm.tdp_mmu=N).

        files are what it needs besides what make builds, where it does not see the host's.

        counting gives it one emulated processor whose clock counts instructions, one as a nanosecond: how long
        something takes is then the same on every machine, however busy.
        """
        if kvm and vendor is None:
            raise ValueError(f"whose parameters are {kvm}?")
        if counting and vendor == "intel":
            raise ValueError("the emulator of Intel's virtualization always counts")
        self.kernel_version = kernel_version
        self.cpus = 1 if counting else cpus or len(os.sched_getaffinity(0))
        self.memory = memory
        self.module = module
        self.vendor = vendor
        self.kvm = "" if module and kvm is None else kvm
        self.files = tuple(files)
        self.counting = counting
        self.answer_timeout = answer_timeout
        self.slowness = BUSY_SLOWNESS * (CHECKING_SLOWNESS if KERNELS[kernel_version].built_from else 1)
        self.boots = 0
        self.complaints: list[str] = []  # of all commands, until somebody clears it
        self._kernel: Kernel | None = None
        self._machine: Machine | None = None
        self._kernel_log: list[str] = []
        self._races: Races | None = None  # where the kernel looks for them
        self._runs = 0

    def __enter__(self) -> VM:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def kernel(self) -> Kernel:
        """The kernel that it boots."""
        if self._kernel is None:
            setup_host()
            self._kernel = kernel(self.kernel_version)
        return self._kernel

    @property
    def module_path(self) -> Path:
        """The memslot.ko that it loads."""
        return PROJECT / "build" / "module" / self.kernel.release / "memslot.ko"

    def start(self) -> None:
        """Boots, unless it runs already."""
        if self._machine:
            return
        kernel_ = self.kernel  # the first thing that needs the machine to be set up
        if self.module and not self.module_path.exists():
            raise VMError(f"{self.module_path} does not exist; run: make module KERNEL={self.kernel_version}")
        _build_agent()
        hardware = hardware_virtualization()
        emulated = self.counting or hardware is None or (self.vendor is not None and hardware != VENDORS[self.vendor])
        self._kernel_log.clear()
        self._races = Races(SourceLines(kernel_)) if KERNELS[self.kernel_version].finds_races else None
        if emulated and self.vendor == "intel":
            if self.memory > MOST_MEMORY:
                raise VMError(f"the emulator of Intel's virtualization has at most {MOST_MEMORY} MiB of memory")
            files = [*self.files, *([self.module_path] if self.module else [])]
            self._machine = Bochs(kernel_, self.cpus, self.memory, self.slowness, files)
        else:
            self._machine = QEMU(kernel_, self.cpus, self.memory, emulated, self.counting, self.slowness)
        self.boots += 1
        try:
            self._wait_for_boot()
            self._load_modules()
        except BaseException:
            self.stop()
            raise

    def _wait_for_boot(self) -> None:
        assert self._machine
        deadline = time.monotonic() + BOOT_TIMEOUT * self.slowness
        try:
            while True:
                kind, payload = self._machine.receive(deadline)
                if kind == FRAME_READY:
                    break
                self._log(payload)
        except Lost as lost:
            console = self._bury(lost)
            raise VMError(f"the VM {lost} while it booted\n--- console\n{console}") from None
        if any(COMPLAINT.search(line) for line in self._kernel_log):
            raise VMError("the kernel log has warnings from booting\n" + "\n".join(self._kernel_log))
        self._kernel_log.clear()

    def _load_modules(self) -> None:
        if self.kvm is None:
            return
        assert self._machine
        words = [*self._machine.kvm_parameters, *self.kvm.split()]
        common = [word.removeprefix("kvm.") for word in words if word.startswith("kvm.")]
        own = [word for word in words if not word.startswith("kvm.")]
        script = f"""
            if grep -qw svm /proc/cpuinfo; then vendor=kvm_amd; else vendor=kvm_intel; fi
            modprobe kvm {shlex.join(common)} && modprobe "$vendor" {shlex.join(own)} && test -c /dev/kvm || exit
        """
        if self._races:
            script += "echo on > /sys/kernel/debug/kcsan || exit\n"
        if self.module:
            script += f"insmod {shlex.quote(str(self.module_path))} && test -c /dev/memslot || exit\n"
            script += "cat /proc/modules\n"
        result = self._run(_Command(["/bin/sh", "-c", script], DEFAULT_TIMEOUT * self.slowness))
        if result.outcome is not Outcome.OK or result.complaints:
            result.command = "loading modules"
            raise VMError(result.report())
        if self._races and (match := re.search(rf"^{MODULE} (\d+) .* 0x([0-9a-f]+)", result.stdout, re.M)):
            self._races.image = range(start := int(match[2], 16), start + int(match[1]))

    def stop(self) -> None:
        """Ends it; what commands wrote is gone."""
        if self._machine:
            self._bury()

    def _bury(self, lost: Lost | None = None) -> str:
        """Ends the emulator; returns its last words."""
        assert self._machine
        machine, self._machine = self._machine, None
        if lost and str(lost) == "hung":
            machine.provoke()
        return machine.end()

    def _log(self, record: bytes) -> None:
        # "priority,sequence,microseconds,flags;text\n KEY=value\n"
        prefix, _, text = record.decode(errors="replace").partition(";")
        self._kernel_log.append(f"[{int(prefix.split(',')[2]) / 1e6:12.6f}] {text.partition(chr(10))[0]}")

    def run(
        self,
        *command: str | os.PathLike[str],
        timeout: float = DEFAULT_TIMEOUT,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] = PROJECT,
        on_stdout: Callable[[bytes], None] | None = None,
        on_stderr: Callable[[bytes], None] | None = None,
    ) -> Result:
        """Runs a command and waits for its end.

        env adds to a small environment of the VM's own; on_stdout and on_stderr get output as it comes.
        timeout is for a quiet machine and Debian's kernels: it is multiplied by slowness, and MEMSLOT_SLOWNESS tells
        the command by how much.
        """
        self.start()
        argv = [os.fspath(argument) for argument in command]
        env = {"MEMSLOT_SLOWNESS": str(self.slowness), **(env or {})}
        timeout *= self.slowness
        return self._run(_Command(argv, timeout, stdin, env, os.fspath(cwd), on_stdout, on_stderr))

    def find_leaks(self) -> str | None:
        """What the kernel has lost since the last call, with backtraces; None if it does not look for that."""
        if self.run("test", "-e", "/sys/kernel/debug/kmemleak").outcome is Outcome.FAILED:
            return None
        result = self.run("/bin/sh", "-c", FIND_LEAKS)
        # kmemleak tells the kernel's log, too: what to make of that is the caller's business
        self.complaints = [line for line in self.complaints if "suspected memory leaks" not in line]
        return result.output.strip() if result.outcome is Outcome.OK else result.report()

    def interact(self, *command: str, cwd: str | os.PathLike[str] = PROJECT) -> Result:
        """Runs a command on this process's terminal, for as long as it takes."""
        self.start()

        def send(kind: int, payload: bytes) -> None:
            if self._machine:
                self._machine.send(kind, payload)

        def forward_input() -> None:
            data = os.read(0, 4096)
            if not data:
                raise VMError("the terminal is gone")
            send(FRAME_INPUT, data)

        with _raw_terminal() as resized:

            def forward_size() -> None:
                os.read(resized, 4096)
                size = os.get_terminal_size(0)
                send(FRAME_RESIZE, WINSIZE.pack(size.lines, size.columns, 0, 0))

            env = {"TERM": os.environ.get("TERM", "dumb"), "PS1": r"[\h] \w\$ "}
            request = _Command(
                command,
                timeout=None,
                env=env,
                cwd=os.fspath(cwd),
                on_stdout=lambda data: write_all(1, data),
                terminal=os.get_terminal_size(0),
            )
            return self._run(request, {0: forward_input, resized: forward_size})

    def _run(self, command: _Command, sources: Mapping[int, Callable[[], None]] | None = None) -> Result:
        assert self._machine
        self._runs += 1
        self._machine.console.clear()
        self._machine.send(FRAME_RUN, command.request(self._runs))
        if command.terminal is None:
            for at in range(0, len(command.stdin), 65536):
                self._machine.send(FRAME_INPUT, command.stdin[at : at + 65536])
            self._machine.send(FRAME_INPUT)

        started = time.monotonic()
        deadline = None if command.timeout is None else started + command.timeout + self.answer_timeout
        console, status = "", None
        try:
            how, value = self._serve(command, deadline, sources)
        except Lost as lost:
            console = self._bury(lost)
            outcome, reason = Outcome.LOST, f"the VM {lost}"
        except BaseException:
            # the command still runs in there
            self.stop()
            raise
        else:
            outcome, status, reason = self._judge(command, how, value)
            if how == END_TIMED_OUT and value:
                console = self._bury()
        log, self._kernel_log = self._kernel_log, []
        if self._races:
            log = self._races.judge(log)
        suspects = [*log, *console.splitlines()] if outcome is Outcome.LOST else log
        complaints = [line for line in suspects if MARKER not in line and COMPLAINT.search(line)]
        self.complaints += complaints
        return Result(
            command=shlex.join(command.argv),
            outcome=outcome,
            status=status,
            reason=reason,
            stdout=command.stdout.decode(errors="replace"),
            stderr=command.stderr.decode(errors="replace"),
            output=command.output.decode(errors="replace"),
            kernel_log=log,
            complaints=complaints,
            console=console,
            seconds=time.monotonic() - started,
        )

    def _serve(
        self, command: _Command, deadline: float | None, sources: Mapping[int, Callable[[], None]] | None
    ) -> tuple[int, int]:
        assert self._machine
        while True:
            kind, payload = self._machine.receive(deadline, sources)
            if kind == FRAME_END:
                how, value = END.unpack(payload)
                return how, value
            if kind == FRAME_KMSG:
                self._log(payload)
            else:
                command.take(kind, payload)

    @staticmethod
    def _judge(command: _Command, how: int, value: int) -> tuple[Outcome, int | None, str]:
        if how == END_TIMED_OUT:
            unkillable = ", and it cannot be killed" if value else ""
            return Outcome.TIMED_OUT, None, f"timed out{unkillable}"
        if how == END_NOT_STARTED:
            return Outcome.FAILED, 127, f"cannot be started: {os.strerror(value)}"
        if how == END_NO_DIRECTORY:
            return Outcome.FAILED, 127, f"cannot enter {command.cwd} in the VM: {os.strerror(value)}"
        if how == END_KILLED:
            return Outcome.FAILED, 128 + value, f"killed by signal {value} ({signal.strsignal(value)})"
        if value:
            return Outcome.FAILED, value, f"exit status {value}"
        return Outcome.OK, 0, "ok"


def write_all(fd: int, data: bytes) -> None:
    """Writes all of it to a file descriptor."""
    while data:
        data = data[os.write(fd, data) :]


@contextmanager
def _raw_terminal() -> Iterator[int]:
    """Stdin passes every key on; yields a file descriptor to read when the window's size changes."""
    before = termios.tcgetattr(0)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def on_resize(*_: object) -> None:
        os.write(writer, b"\0")

    handler = signal.signal(signal.SIGWINCH, on_resize)
    try:
        tty.setraw(0)
        yield reader
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, handler)
        os.close(reader)
        os.close(writer)
