# SPDX-License-Identifier: GPL-2.0
"""What the test VM's kernel starts with: /init and the agent.

The root is the host's, below an overlay; or, where the emulator cannot show the host's files, what is packed in is all
that there is.
"""

from __future__ import annotations

import io
import lzma
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from debian import CACHE, PROJECT, output
from kernels import Kernel

AGENT = PROJECT / "build" / "vm" / "agent"

PYTHON = Path("/usr/bin/python3")

# Kernel modules that the VM needs before it sees the host's root.
BOOT_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")

START = """\
#!/bin/busybox sh
try() {
	/bin/busybox "$@" && return
	echo "init: $* failed"
	/bin/busybox poweroff -f
}
try mount -t proc proc /proc
try mount -t sysfs sysfs /sys
try mount -t devtmpfs devtmpfs /dev
"""

HOSTS_ROOT = """\
for module in @MODULES@; do
	try insmod "/modules/$module"
done

# The host's root does not change under the VM's feet, so it may cache.
try mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host
try mount -t tmpfs -o size=75% tmpfs /written
try mkdir /written/upper /written/work
try mount -t overlay -o lowerdir=/host,upperdir=/written/upper,workdir=/written/work overlay /root
try mount -o bind /root /whole
for directory in proc sys dev tmp run usr/lib/modules; do
	if [ -L "/root/$directory" ]; then
		try rm "/root/$directory"
	fi
	try mkdir -p "/root/$directory"
done
try mount -t tmpfs -o mode=1777 tmpfs /root/tmp
try mount -t tmpfs -o mode=755 tmpfs /root/run
try mkdir /root/run/lock
try mount -o bind /whole@MODULES_ROOT@ /root/usr/lib/modules
"""

# The root is memory already; a file system mounted over /tmp would hide what is packed below it.
OWN_ROOT = """\
try chmod 1777 /tmp
try mkdir -p /run/lock
"""

KERNELS_FILES = """
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
"""

ENTER_HOSTS_ROOT = """
try cp /agent /root/run/agent
for directory in proc sys dev; do
	try mount -o move "/$directory" "/root/$directory"
done
# What the VM needs of the host and its own file systems hide
show() {
	try mkdir -p "/root$2"
	try mount -o bind "/whole$1" "/root$2"
}
@SHOW@
exec /bin/busybox switch_root /root /run/agent
"""

ENTER_OWN_ROOT = """
exec /agent @PORT@
"""

# Where the VM has file systems of its own.
OWN_PLACES = tuple(map(Path, ("/tmp", "/run", "/dev", "/usr/lib/modules")))


class Cpio:
    """A cpio archive (newc), as the kernel takes it for an initramfs."""

    def __init__(self) -> None:
        self._data = io.BytesIO()
        self._inode = 0
        self._names: set[str] = set()

    def _add(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        self._names.add(name)
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
        self._data.write(b"070701" + b"".join(b"%08x" % f for f in fields) + name.encode() + b"\0")
        self._data.write(bytes(-self._data.tell() % 4) + data)
        self._data.write(bytes(-self._data.tell() % 4))

    def directory(self, name: str) -> None:
        self._add(name, 0o040755)

    def program(self, name: str, data: bytes) -> None:
        self._add(name, 0o100755, data)

    def link(self, name: str, to: str) -> None:
        self._add(name, 0o120777, to.encode())

    def character_device(self, name: str, major: int, minor: int) -> None:
        self._add(name, 0o020600, device=(major, minor))

    def parents(self, name: str) -> None:
        """The directories that a file is in, as far as they are missing."""
        for parent in reversed(Path(name).parents[:-1]):
            if str(parent) not in self._names:
                self.directory(str(parent))

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def finish(self) -> bytes:
        self._add("TRAILER!!!", 0)
        return self._data.getvalue()


def dependencies(kernel: Kernel) -> dict[str, list[str]]:
    """The files of the kernel's modules, below them, and what each of them depends on."""
    lines = (line.partition(":") for line in (kernel.modules / "modules.dep").read_text().splitlines())
    return {path: needed.split() for path, _, needed in lines}


def loading_order(kernel: Kernel, names: Sequence[str]) -> list[str]:
    """The files of these modules and of all they depend on, below the kernel's modules."""
    needs = dependencies(kernel)
    paths = {Path(path).name.partition(".")[0].replace("-", "_"): path for path in needs}
    builtin = {Path(path).stem.replace("-", "_") for path in (kernel.modules / "modules.builtin").read_text().splitlines()}
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


def uncompressed(path: str) -> str:
    """What a module's file is called here."""
    return path.removesuffix(".xz")


def read_module(path: Path) -> bytes:
    """A module, as the kernel takes it without help."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def hidden_directories() -> dict[Path, Path]:
    """The project's directories that the VM's own file systems hide: what they are called, and where they really are.

    The project may also be known by the name under which this process was started in it, through a symbolic link.
    """
    names = {path: path for path in (PROJECT, CACHE.resolve(), (PROJECT / "build").resolve())}
    started_in = Path(os.environ.get("PWD", "/"))
    names |= {path: PROJECT for path in (started_in, *started_in.parents) if path.resolve() == PROJECT}
    # A directory comes before those below it, which it would hide
    return {name: names[name] for name in sorted(names) if any(name.is_relative_to(own) for own in OWN_PLACES)}


def _begin(init: str, directories: Sequence[str]) -> Cpio:
    archive = Cpio()
    for directory in ("bin", "dev", "proc", "sys", "root", *directories):
        archive.directory(directory)
    # Without it, what init says is lost.
    archive.character_device("dev/console", 5, 1)
    archive.program("bin/busybox", Path("/bin/busybox").read_bytes())
    archive.program("agent", AGENT.read_bytes())
    archive.program("init", os.fsencode(init))
    return archive


def sharing(kernel: Kernel) -> bytes:
    """For a machine that has the host's root on 9p, and the agent's port on virtio-serial."""
    modules = loading_order(kernel, BOOT_MODULES)
    init = START + HOSTS_ROOT + KERNELS_FILES + ENTER_HOSTS_ROOT
    init = init.replace("@MODULES@", " ".join(uncompressed(Path(module).name) for module in modules))
    init = init.replace("@MODULES_ROOT@", shlex.quote(str(kernel.modules.parent.resolve())))
    shown = (shlex.join(["show", str(path), str(name)]) for name, path in hidden_directories().items())
    init = init.replace("@SHOW@", "\n".join(shown))
    archive = _begin(init, ("host", "written", "whole", "modules"))
    for module in modules:
        archive.program(f"modules/{uncompressed(Path(module).name)}", read_module(kernel.modules / module))
    return archive.finish()


def stripped(module: bytes) -> bytes:
    """A module without its debugging information; and without its signature, which takes time to check."""
    with tempfile.NamedTemporaryFile(suffix=".ko") as file:
        file.write(module)
        file.flush()
        output(["strip", "--strip-debug", file.name])
        # strip puts a new file in its place, or writes to it
        return Path(file.name).read_bytes()


def libraries(programs: Sequence[Path]) -> list[Path]:
    """What programs and libraries are linked with, and their loader."""
    if not programs:
        return []
    # It fails if one of them needs none
    said = subprocess.run(["ldd", *programs], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return [Path(path) for path in dict.fromkeys(re.findall(r"(/\S+) \(0x", said.stdout))]


# Prints each module that a program imports, and where Python keeps what it has compiled of it, if it does.
IMPORTED = """
import os, runpy, sys
program, sys.path[0:0] = sys.argv[1], [os.path.dirname(sys.argv[1])]
runpy.run_path(program, run_name="looked_at")
for module in list(sys.modules.values()):
    if getattr(module, "__file__", None):
        compiled = getattr(module, "__cached__", None) or ""
        print(module.__file__, compiled if os.path.exists(compiled) else "", sep="\\t")
"""
COMPILED = AGENT.parent / "python"


def python_modules(program: Path) -> dict[Path, Path]:
    """What a program in Python imports as it starts: where the VM shall have it, and the file that it is.

    What Python would need a minute in the emulator to compile, comes compiled: without the source it is taken as it is.
    """
    # Isolated from what this process was told: it might not keep what it compiles
    command = [str(PYTHON), "-I", "-X", f"pycache_prefix={COMPILED}", "-c", IMPORTED, str(program)]
    pairs = (line.split("\t") for line in output(command).splitlines())
    return {Path(file + "c" if compiled else file): Path(compiled or file) for file, compiled in pairs}


def packing(kernel: Kernel, modules: Sequence[str], files: Iterable[Path], directories: Iterable[Path], port: str) -> bytes:
    """For a machine that has no other files than these; the agent's port is a terminal.

    Programs come with what they are linked with, those in Python with it and what they import, and modules with what they
    depend on; whose file is in the project, is where it is there, and modprobe finds the kernel's.  The commands are busybox's.
    """
    init = (START + OWN_ROOT + KERNELS_FILES + ENTER_OWN_ROOT).replace("@PORT@", port)
    archive = _begin(init, ("tmp", "run"))

    def place(path: Path, data: bytes) -> None:
        name = str(path).removeprefix("/")
        if name not in archive:
            archive.parents(name)
            archive.program(name, data)

    for command in output(["/bin/busybox", "--list-full"]).split():
        if command not in archive:
            archive.parents(command)
            archive.link(command, "/bin/busybox")
    needs = dependencies(kernel)
    own = Path("/lib/modules") / kernel.release
    lines = []
    for module in loading_order(kernel, modules):
        place(own / uncompressed(module), stripped(read_module(kernel.modules / module)))
        lines.append(f"{uncompressed(module)}: {' '.join(map(uncompressed, needs[module]))}\n")
    place(own / "modules.dep", "".join(lines).encode())
    wanted = {path: path for path in files}
    for program in [path for path in wanted if path.suffix == ".py"]:
        wanted |= {PYTHON: PYTHON} | python_modules(program)
    programs = [path for path in wanted if path.suffix not in {".ko", ".py", ".pyc"}]
    for path, file in (wanted | {path: path for path in libraries(programs)}).items():
        data = file.read_bytes()
        place(path, stripped(data) if path.suffix == ".ko" else data)
    for directory in directories:
        archive.parents(str(directory / "file").removeprefix("/"))
    return archive.finish()
