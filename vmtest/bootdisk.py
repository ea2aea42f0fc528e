# SPDX-License-Identifier: GPL-2.0
"""A disk that starts a kernel at once, without boot loader and decompression, by an option ROM (rom.S).

The kernel is entered as Xen enters a guest of its PVH kind, which is a jump with a structure in memory: see
xen/include/public/arch-x86/hvm/start_info.h.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from debian import DebianError, output

HERE = Path(__file__).resolve().parent

# rom.S has the other side of these.
ROM_ADDRESS = 0xD0000
ROM_SIZE = 512
PLAN_ADDRESS = 0x10000
PLAN = struct.Struct("<II")
PART = struct.Struct("<III")
SECTOR = 512
CHUNK = 256 * SECTOR

# Within the first chunk, behind the plan
START_INFO, MODULES, MEMORY_MAP, COMMAND_LINE = 0x400, 0x500, 0x600, 0x1000
COMMAND_LINE_SIZE = 2048  # of x86's kernels

START_INFO_MAGIC = 0x336EC578
START_INFO_V1 = struct.Struct("<IIIIQQQQII")
MODULE = struct.Struct("<QQQQ")
RANGE = struct.Struct("<QQII")
RAM, RESERVED, ACPI = 1, 2, 3

PAGE = 4096
# What the BIOS keeps for itself: below 1 MiB, and ACPI's tables at the end of memory.
BIOS_DATA, ROMS = range(0x9F000, 0xA0000), range(0xE8000, 0x100000)
ACPI_TABLES = 0x10000

ELF_HEADER = struct.Struct("<32xQ14xHH")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
NOTE = struct.Struct("<III")
LOAD, NOTES = 1, 4
XEN_PHYS32_ENTRY = 18


def round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


@dataclass(frozen=True)
class Image:
    """A kernel as it is in memory."""

    address: int
    data: bytes
    end: int  # with what it clears itself
    entry: int


def _notes(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    at = 0
    while at + NOTE.size <= len(data):
        name_size, size, kind = NOTE.unpack_from(data, at)
        name = at + NOTE.size
        content = name + round_up(name_size, 4)
        yield data[name : name + name_size].rstrip(b"\0"), kind, data[content : content + size]
        at = content + round_up(size, 4)


def load(vmlinux: Path) -> Image:
    """A kernel that has a PVH entry."""
    elf = vmlinux.read_bytes()
    offset, size, count = ELF_HEADER.unpack_from(elf)
    segments, entry = [], None
    for number in range(count):
        kind, _, start, _, address, length, whole, _ = PROGRAM_HEADER.unpack_from(elf, offset + number * size)
        data = elf[start : start + length]
        if kind == LOAD:
            segments.append((address, data, address + whole))
        elif kind == NOTES:
            for name, number_, content in _notes(data):
                if (name, number_) == (b"Xen", XEN_PHYS32_ENTRY):
                    entry = int.from_bytes(content, "little")
    if entry is None:
        raise DebianError(f"{vmlinux} has no PVH entry")
    first, end = min(address for address, _, _ in segments), max(end for _, _, end in segments)
    memory = bytearray(max(address + len(data) for address, data, _ in segments) - first)
    for address, data, _ in segments:
        memory[address - first : address - first + len(data)] = data
    return Image(first, bytes(memory), end, entry)


def memory_map(memory: int) -> list[tuple[int, int, int]]:
    """Address, size and kind of all ranges of a machine with so many bytes."""
    tables = memory - ACPI_TABLES
    return [
        (0, BIOS_DATA.start, RAM),
        (BIOS_DATA.start, len(BIOS_DATA), RESERVED),
        (ROMS.start, len(ROMS), RESERVED),
        (ROMS.stop, tables - ROMS.stop, RAM),
        (tables, ACPI_TABLES, ACPI),
    ]


def disk(vmlinux: Path, initramfs: bytes, command_line: str, memory: int) -> bytes:
    """The disk of a machine with so many bytes of memory."""
    kernel = load(vmlinux)
    # Where the kernel wants nothing itself
    at = round_up(kernel.end, 1 << 21)
    words = command_line.encode() + b"\0"
    if len(words) > COMMAND_LINE_SIZE:
        raise DebianError(f"the kernel's command line is too long: {command_line}")
    if round_up(at + len(initramfs), CHUNK) > memory - ACPI_TABLES:
        raise DebianError(f"{memory >> 20} MiB are too few for {vmlinux.name} and {len(initramfs) >> 20} MiB of files")
    ranges = memory_map(memory)
    parts = ((kernel.address, kernel.data), (at, initramfs))
    first = bytearray(CHUNK)
    PLAN.pack_into(first, 0, kernel.entry, PLAN_ADDRESS + START_INFO)
    modules, line, map_ = (PLAN_ADDRESS + place for place in (MODULES, COMMAND_LINE, MEMORY_MAP))
    START_INFO_V1.pack_into(first, START_INFO, START_INFO_MAGIC, 1, 0, 1, modules, line, 0, map_, len(ranges), 0)
    MODULE.pack_into(first, MODULES, at, len(initramfs), 0, 0)
    for number, (address, size, kind) in enumerate(ranges):
        RANGE.pack_into(first, MEMORY_MAP + number * RANGE.size, address, size, kind, 0)
    first[COMMAND_LINE : COMMAND_LINE + len(words)] = words
    rest = bytearray()
    for number, (address, data) in enumerate(parts):
        chunks = round_up(len(data), CHUNK) // CHUNK
        PART.pack_into(first, PLAN.size + number * PART.size, (CHUNK + len(rest)) // SECTOR, chunks, address)
        rest += data.ljust(chunks * CHUNK, b"\0")
    return bytes(first + rest)


def rom() -> bytes:
    """The option ROM, assembled, with the checksum that the BIOS asks for."""
    with tempfile.TemporaryDirectory() as directory:
        code, binary = Path(directory) / "rom.o", Path(directory) / "rom"
        output(["gcc", "-m32", "-c", "-o", str(code), str(HERE / "rom.S")])
        output(["ld", "-m", "elf_i386", "-Ttext=0", "--entry=0", "--oformat=binary", "-o", str(binary), str(code)])
        data = binary.read_bytes()
    if len(data) >= ROM_SIZE:
        raise DebianError(f"rom.S has {len(data)} bytes, which are too many")
    data = data.ljust(ROM_SIZE - 1, b"\0")
    return data + bytes([-sum(data) & 0xFF])
