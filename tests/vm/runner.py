# SPDX-License-Identifier: GPL-2.0
"""Boots a virtual machine and runs commands in it.

The VM's root is the host's root, read-only, below an overlay in the VM's memory: commands see the host's
files at the same paths, and what they write is gone when the VM ends.  /tmp, /run, /dev, /proc and /sys are
the VM's own.  The VM caches what it has read: boot a new one after changing a file on the host.
"""

from __future__ import annotations

import enum
import fcntl
import io
import lzma
import os
import re
import selectors
import shlex
import signal
import socket
import struct
import subprocess
import tempfile
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from debian import PROJECT, DebianError, setup_host
from emulator import emulator
from kernels import KERNELS, Kernel, kernel

__all__ = ["VM", "VMError", "DebianError", "Outcome", "Result", "hardware_virtualization", "DEFAULT_KERNEL"]

HERE = Path(__file__).resolve().parent
AGENT = PROJECT / "build" / "vm" / "agent"

DEFAULT_KERNEL = next(iter(KERNELS))
DEFAULT_MEMORY = 2048  # MiB
LEAST_MEMORY = 256
DEFAULT_TIMEOUT = 120.0  # seconds, of a command
BOOT_TIMEOUT = 180.0
CHECKING_SLOWNESS = 6  # how much longer all may take on a kernel that checks everything
# The agent gives up on a command that cannot be killed 20 s after its timeout; one that says nothing by
# then is hung, and the VM with it.
ANSWER_TIMEOUT = 60.0
CONSOLE_BYTES = 1 << 18

# agent.c has the other side of these.
PORT_NAME = "memslot.agent"
FRAME = struct.Struct("<II")
FRAME_RUN, FRAME_INPUT, FRAME_RESIZE = 1, 2, 3
FRAME_READY, FRAME_STDOUT, FRAME_STDERR, FRAME_KMSG, FRAME_END = 1, 2, 3, 4, 5
RUN = struct.Struct("<IIIII")
WINSIZE = struct.Struct("<HHHH")
END = struct.Struct("<II")
END_EXITED, END_KILLED, END_TIMED_OUT, END_NOT_STARTED, END_NO_DIRECTORY = 0, 1, 2, 3, 4

MARKER = "memslot-vm: "
COMPLAINT = re.compile(
    r"WARNING: |BUG: |kernel BUG at| \[#\d+\]|Kernel panic|UBSAN: |KCSAN: "
    r"|INFO: (?:task .* blocked for|rcu.*stall|trying to register non-static key)|detected stalls? on"
    r"|unreferenced object|suspected memory leaks|page allocation failure|list_(?:add|del) corruption"
    r"|unchecked MSR access|nobody cared"
)


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


# Kernel modules that the VM needs before it sees its root.
BOOT_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")

INIT = """\
#!/bin/busybox sh
try() {
	/bin/busybox "$@" && return
	echo "init: $* failed"
	/bin/busybox poweroff -f
}
try mount -t proc proc /proc
try mount -t sysfs sysfs /sys
try mount -t devtmpfs devtmpfs /dev
for module in @MODULES@; do
	try insmod "/modules/$module"
done

# The host's root does not change under the VM's feet, so it may cache.
try mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host
try mount -t tmpfs -o size=75% tmpfs /written
try mkdir /written/upper /written/work
try mount -t overlay -o lowerdir=/host,upperdir=/written/upper,workdir=/written/work overlay /root
for directory in proc sys dev tmp run usr/lib/modules; do
	try mkdir -p "/root/$directory"
done
try mount -t tmpfs -o mode=1777 tmpfs /root/tmp
try mount -t tmpfs -o mode=755 tmpfs /root/run
try mkdir /root/run/lock
try mount -o bind "/root@MODULES_ROOT@" /root/usr/lib/modules

try mount -t debugfs debugfs /sys/kernel/debug
try mount -t tracefs tracefs /sys/kernel/tracing
try mkdir -p /dev/pts /dev/shm
try mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
try mount -t tmpfs -o mode=1777 tmpfs /dev/shm
try ln -s /proc/self/fd /dev/fd
try ln -s fd/0 /dev/stdin
try ln -s fd/1 /dev/stdout
try ln -s fd/2 /dev/stderr
try ifconfig lo 127.0.0.1 up
try hostname memslot-vm

try cp /agent /root/run/agent
for directory in proc sys dev; do
	try mount -o move "/$directory" "/root/$directory"
done
exec /bin/busybox switch_root /root /run/agent
"""


class Cpio:
    """A cpio archive (newc), as the kernel takes it for an initramfs."""

    def __init__(self) -> None:
        self._data = io.BytesIO()
        self._inode = 0

    def _add(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
        self._data.write(b"070701" + b"".join(b"%08x" % f for f in fields) + name.encode() + b"\0")
        self._data.write(bytes(-self._data.tell() % 4) + data)
        self._data.write(bytes(-self._data.tell() % 4))

    def directory(self, name: str) -> None:
        self._add(name, 0o040755)

    def program(self, name: str, data: bytes) -> None:
        self._add(name, 0o100755, data)

    def character_device(self, name: str, major: int, minor: int) -> None:
        self._add(name, 0o020600, device=(major, minor))

    def finish(self) -> bytes:
        self._add("TRAILER!!!", 0)
        return self._data.getvalue()


def loading_order(kernel_: Kernel, names: Sequence[str]) -> list[str]:
    """The files of these modules and of all they depend on, below the kernel's modules."""
    needs: dict[str, list[str]] = {}
    for line in (kernel_.modules / "modules.dep").read_text().splitlines():
        path, _, dependencies = line.partition(":")
        needs[path] = dependencies.split()
    paths = {Path(path).name.partition(".")[0]: path for path in needs}
    builtin = {Path(path).stem for path in (kernel_.modules / "modules.builtin").read_text().splitlines()}
    order: list[str] = []

    def add(path: str) -> None:
        for dependency in needs[path]:
            add(dependency)
        if path not in order:
            order.append(path)

    for name in names:
        if name not in builtin:
            add(paths[name])
    return order


def _initramfs(kernel_: Kernel) -> bytes:
    modules = loading_order(kernel_, BOOT_MODULES)
    init = INIT.replace("@MODULES@", " ".join(Path(module).name.removesuffix(".xz") for module in modules))
    init = init.replace("@MODULES_ROOT@", str(kernel_.modules.parent.resolve()))
    archive = Cpio()
    for directory in ("bin", "dev", "proc", "sys", "host", "written", "root", "modules"):
        archive.directory(directory)
    # Without it, what init says is lost.
    archive.character_device("dev/console", 5, 1)
    archive.program("bin/busybox", Path("/bin/busybox").read_bytes())
    archive.program("agent", AGENT.read_bytes())
    archive.program("init", init.encode())
    for module in modules:
        data = (kernel_.modules / module).read_bytes()
        if module.endswith(".xz"):
            data = lzma.decompress(data)
        archive.program(f"modules/{Path(module).name.removesuffix('.xz')}", data)
    return archive.finish()


class _Lost(Exception):
    """The VM died, or did not answer in time."""


class _QEMU:
    """A running QEMU: the agent's port, the console, and the monitor."""

    def __init__(self, kernel_: Kernel, cpus: int, memory: int, emulated: bool, counting: bool) -> None:
        # panic=-1 reboots at once, and with -no-reboot that ends QEMU.  The NMI of last_words() is unknown.
        append = "console=ttyS0 loglevel=5 log_buf_len=4M printk.devkmsg=on panic=-1 oops=panic panic_on_warn=1 unknown_nmi_panic"
        command, environment = ["qemu-system-x86_64"], None
        if emulated:
            qemu = emulator()
            command, environment = qemu.command, qemu.environment
            command += ["-accel", "tcg,thread=single" if counting else "tcg,thread=multi", "-cpu", "max"]
        else:
            command += ["-accel", "kvm", "-cpu", "host"]
        if counting:
            # An instruction is a nanosecond.  Linux does not trust the counter of a processor that it cannot compare.
            command += ["-icount", "shift=0,sleep=off"]
            append += " tsc=reliable"
        self.console = bytearray()
        self.outgoing = bytearray()
        self._incoming = bytearray()
        self._errors = tempfile.TemporaryFile()
        sockets = [socket.socketpair() for _ in range(3)]
        (self._agent, agent), (self._serial, serial), (self._monitor, monitor) = sockets
        initramfs = os.memfd_create("initramfs")
        try:
            with open(initramfs, "wb", closefd=False) as file:
                file.write(_initramfs(kernel_))
            command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
            command += ["-smp", str(cpus), "-m", str(memory)]
            command += ["-kernel", str(kernel_.image), "-initrd", f"/proc/self/fd/{initramfs}", "-append", append]
            command += ["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"]
            command += ["-device", "virtio-9p-pci,fsdev=root,mount_tag=host"]
            command += ["-chardev", f"socket,id=serial,fd={serial.fileno()}", "-serial", "chardev:serial"]
            command += ["-chardev", f"socket,id=monitor,fd={monitor.fileno()}", "-mon", "chardev=monitor"]
            command += ["-chardev", f"socket,id=agent,fd={agent.fileno()}", "-device", "virtio-serial-pci"]
            command += ["-device", f"virtserialport,chardev=agent,name={PORT_NAME}"]
            self._process = subprocess.Popen(
                # setpriv becomes QEMU: the process dies when this thread does
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                pass_fds=(agent.fileno(), serial.fileno(), monitor.fileno(), initramfs),
                start_new_session=True,
            )
        except BaseException:
            self._close()
            raise
        finally:
            for theirs in (agent, serial, monitor):
                theirs.close()
            os.close(initramfs)
        self._agent.setblocking(False)
        self._serial.setblocking(False)

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
                raise _Lost("hung")
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
                elif key.fileobj is self._serial:
                    self._read_console()
                else:
                    sources[key.fd]()

    def _talk(self, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                del self.outgoing[: self._agent.send(self.outgoing[:65536])]
            if events & selectors.EVENT_READ:
                data = self._agent.recv(1 << 18)
                if not data:
                    raise _Lost("died")
                self._incoming += data
        except ConnectionError as error:
            raise _Lost("died") from error

    def _read_console(self) -> bool:
        try:
            data = self._serial.recv(65536)
        except (BlockingIOError, ConnectionError):
            return False
        self.console += data
        del self.console[:-CONSOLE_BYTES]
        return bool(data)

    def provoke(self) -> None:
        """Makes a hung kernel panic, so that its console says where it hangs."""
        self._monitor.sendall(b"nmi\n")
        deadline = time.monotonic() + 20
        while (left := deadline - time.monotonic()) > 0:
            with selectors.DefaultSelector() as selector:
                selector.register(self._serial, selectors.EVENT_READ)
                if selector.select(left) and not self._read_console():
                    return

    def end(self) -> str:
        """Kills QEMU; returns its errors, and the console since that was last cleared."""
        self._process.kill()
        self._process.wait()
        while self._read_console():
            pass
        self._errors.seek(0)
        errors = self._errors.read()
        self._close()
        return (errors + self.console).decode(errors="replace").replace("\r", "")

    def _close(self) -> None:
        for ours in (self._agent, self._serial, self._monitor):
            ours.close()
        self._errors.close()


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
    that started it.  Use it from one thread: QEMU dies with the thread that booted it.
    """

    def __init__(
        self,
        kernel_version: str = DEFAULT_KERNEL,
        *,
        cpus: int | None = None,
        memory: int = DEFAULT_MEMORY,
        module: bool = False,
        kvm_amd: str | None = None,
        counting: bool = False,
        answer_timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        """module loads KVM and memslot.ko; kvm_amd loads KVM, with these parameters for kvm_amd.

        counting gives it one emulated processor whose clock counts instructions, one as a nanosecond: how long
        something takes is then the same on every machine, however busy.
        """
        self.kernel_version = kernel_version
        self.cpus = 1 if counting else cpus or len(os.sched_getaffinity(0))
        self.memory = memory
        self.module = module
        self.kvm_amd = "" if module and kvm_amd is None else kvm_amd
        self.counting = counting
        self.answer_timeout = answer_timeout
        self.slowness = CHECKING_SLOWNESS if KERNELS[kernel_version].built_from else 1
        self.boots = 0
        self.complaints: list[str] = []  # of all commands, until somebody clears it
        self._kernel: Kernel | None = None
        self._qemu: _QEMU | None = None
        self._kernel_log: list[str] = []
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
        if self._qemu:
            return
        if self.module and not self.module_path.exists():
            raise VMError(f"{self.module_path} does not exist; run: make module KERNEL={self.kernel_version}")
        _build_agent()
        hardware = hardware_virtualization()
        # emulation has SVM on every host
        emulated = self.counting or not (hardware == "svm" or (hardware == "vmx" and not self.kvm_amd))
        self._kernel_log.clear()
        self._qemu = _QEMU(self.kernel, self.cpus, self.memory, emulated, self.counting)
        self.boots += 1
        try:
            self._wait_for_boot()
            self._load_modules()
        except BaseException:
            self.stop()
            raise

    def _wait_for_boot(self) -> None:
        assert self._qemu
        deadline = time.monotonic() + BOOT_TIMEOUT * self.slowness
        try:
            while True:
                kind, payload = self._qemu.receive(deadline)
                if kind == FRAME_READY:
                    break
                self._log(payload)
        except _Lost as lost:
            console = self._bury(lost)
            raise VMError(f"the VM {lost} while it booted\n--- console\n{console}") from None
        if any(COMPLAINT.search(line) for line in self._kernel_log):
            raise VMError("the kernel log has warnings from booting\n" + "\n".join(self._kernel_log))
        self._kernel_log.clear()

    def _load_modules(self) -> None:
        if self.kvm_amd is None:
            return
        script = f"""
            if grep -qw svm /proc/cpuinfo; then kvm=kvm_amd; else kvm=kvm_intel; fi
            modprobe "$kvm" {shlex.join(self.kvm_amd.split())} && test -c /dev/kvm || exit
        """
        if self.module:
            script += f"insmod {shlex.quote(str(self.module_path))} && test -c /dev/memslot || exit\n"
        result = self._run(_Command(["/bin/sh", "-c", script]))
        if result.outcome is not Outcome.OK or result.complaints:
            result.command = "loading modules"
            raise VMError(result.report())

    def stop(self) -> None:
        """Ends it; what commands wrote is gone."""
        if self._qemu:
            self._bury()

    def _bury(self, lost: _Lost | None = None) -> str:
        """Ends QEMU; returns its last words."""
        assert self._qemu
        qemu, self._qemu = self._qemu, None
        if lost and str(lost) == "hung":
            qemu.provoke()
        return qemu.end()

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
        timeout is for Debian's kernels: one that checks everything has more, and MEMSLOT_SLOWNESS says how much.
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
            if self._qemu:
                self._qemu.send(kind, payload)

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
        assert self._qemu
        self._runs += 1
        self._qemu.console.clear()
        self._qemu.send(FRAME_RUN, command.request(self._runs))
        if command.terminal is None:
            for at in range(0, len(command.stdin), 65536):
                self._qemu.send(FRAME_INPUT, command.stdin[at : at + 65536])
            self._qemu.send(FRAME_INPUT)

        started = time.monotonic()
        deadline = None if command.timeout is None else started + command.timeout + self.answer_timeout
        console, status = "", None
        try:
            how, value = self._serve(command, deadline, sources)
        except _Lost as lost:
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
        assert self._qemu
        while True:
            kind, payload = self._qemu.receive(deadline, sources)
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
