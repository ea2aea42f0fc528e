# SPDX-License-Identifier: GPL-2.0
"""What can happen to the memory of a guest, one thing after the other; the guest is asked what it sees of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qemu_process import Json, Machine, Stuck

MEMORY = 256 << 20  # of the guest, as it starts
# Bytes a second that a migration may send.  The slow one takes seconds for what the guest writes in one
FAST, SLOW = 1 << 30, 64 << 10
MOST_TRANSFERS = 10
PLUGGED = 128 << 20
CHUNK, PAGE = 32 << 20, 4096
# Bytes by which the guest's MemTotal may differ from what is plugged
COUNTED_APART = 4 << 20


def total_memory(machine: Machine) -> int:
    """MemTotal of the guest, in bytes."""
    return int(machine.shell("grep MemTotal /proc/meminfo").split()[1]) << 10


def wait_for_memory(machine: Machine, condition: Callable[[int], bool]) -> int:
    deadline = time.monotonic() + machine.timeout
    while not condition(total := total_memory(machine)):
        if time.monotonic() > deadline:
            raise Stuck(f"memory of the guest: {total >> 20} MiB")
        time.sleep(0.2)
    return total


def dimm(machine: Machine) -> Json:
    before = total_memory(machine)
    machine.qmp("object-add", qom_type="memory-backend-ram", id="memory0", size=PLUGGED)
    machine.qmp("device_add", driver="pc-dimm", id="dimm0", memdev="memory0")
    plugged = wait_for_memory(machine, lambda now: now >= before + PLUGGED // 2)
    machine.qmp("device_del", id="dimm0")

    def gone() -> bool:
        return all(device["data"].get("id") != "dimm0" for device in machine.qmp("query-memory-devices"))

    machine.until(gone, "unplugging")
    machine.qmp("object-del", id="memory0")
    return {"plugged": plugged - before, "after": total_memory(machine) - before}


def resize(machine: Machine, before: int, size: int) -> int:
    """What the guest has more than before, once the device and the guest agree."""
    path = "/machine/peripheral/resized"
    machine.qmp("qom-set", path=path, property="requested-size", value=size)
    machine.until(lambda: machine.qmp("qom-get", path=path, property="size") == size, f"virtio-mem at {size >> 20} MiB")
    # The device has plugged a block before the guest counts it
    return wait_for_memory(machine, lambda now: abs(now - before - size) <= COUNTED_APART) - before


def virtio_mem(machine: Machine) -> Json:
    before = total_memory(machine)
    return {"grown_by": [resize(machine, before, size) for size in (PLUGGED, 2 * PLUGGED, PLUGGED // 2, 0)]}


def busy(machine: Machine) -> None:
    """The guest writes its memory from now on, until rest()."""
    machine.shell("{ (while :; do dd if=/dev/urandom of=/busy bs=64k count=4; done) >/dev/null 2>&1 & }; writer=$!")


def rest(machine: Machine) -> None:
    machine.shell("kill $writer; wait $writer")


def until_migrated(machine: Machine) -> str:
    """How a migration that was begun ended."""
    statuses: list[str] = []

    def ended() -> bool:
        statuses.append(machine.qmp("query-migrate").get("status", ""))
        return statuses[-1] in ("completed", "failed", "cancelled")

    machine.until(ended, "the migration")
    return statuses[-1]


def migration(machine: Machine) -> Json:
    busy(machine)
    machine.qmp("migrate", uri="exec:cat >/dev/null")
    status = until_migrated(machine)
    if status == "completed":
        machine.qmp("cont")
    rest(machine)
    return {"status": status}


# The memory of ivshmem-plain is its BAR 2, whose two words begin at 0x18 of the configuration space.
BAR_SIZE = 1 << 20
BAR_FILE = "bar"
BAR_PLACES = (0xD0000000, 0xD1000000)
# One line each: the console's echo of a second one could come in the middle of what the first one says.
FIND_BAR = "for d in /sys/bus/pci/devices/*; do grep -q 0x1110 $d/device && bar=$d; done; echo 1 > $bar/enable"
DEFINE_MOVE = r"""move() { printf "$1\000\000\000\000" | dd of=$bar/config bs=8 seek=3 count=1 conv=notrunc 2>/dev/null; }"""
# The command register, whose second bit says whether the device answers at its addresses in memory
DEFINE_DECODE = r"""decode() { printf "\\$1\000" | dd of=$bar/config bs=2 seek=2 count=1 conv=notrunc 2>/dev/null; }"""


def define_bar_commands(machine: Machine) -> None:
    """From now on the guest's shell has commands that move the device's memory, show it and hide it."""
    machine.shell(FIND_BAR)
    machine.shell(DEFINE_MOVE)
    machine.shell(DEFINE_DECODE)


def _words(place: int) -> str:
    """A BAR's lower word for printf(1), with the flags of a prefetchable one of 64 bits."""
    return "".join(f"\\{byte:03o}" for byte in (place | 0xC).to_bytes(4, "little"))


def move_bar(machine: Machine) -> Json:
    """The guest moves its device's memory to and fro; each time it finds there what it wrote at the other place."""
    define_bar_commands(machine)
    found, wanted = [], []
    machine.shell(f"move '{_words(BAR_PLACES[0])}'")
    for turn in range(8):
        here, there = BAR_PLACES[turn % 2], BAR_PLACES[1 - turn % 2]
        at = turn * 0x5000
        machine.shell(f"devmem {here + at:#x} 32 {0xC0FFEE00 + turn:#x}; move '{_words(there)}'")
        wanted += [0xC0FFEE00 + turn, 0]
        said = machine.shell(f"devmem {there + at:#x}; devmem {here + at:#x}")
        found += [int(word, 16) for word in said.split()]
    return {"found": found, "wanted": wanted}


def restless_bar(machine: Machine) -> None:
    """From now on the guest moves its device's memory, and writes to a page of it in between; until still_bar()."""
    define_bar_commands(machine)
    turns = "; ".join(
        f"move '{_words(place)}'; devmem $(({place:#x} + (n + {step}) % 256 * 4096)) 32 $n"
        for step, place in enumerate(BAR_PLACES)
    )
    machine.shell(f"(n=0; while :; do n=$((n + 2)); {turns}; done) >/dev/null 2>&1 & mover=$!")


def still_bar(machine: Machine) -> None:
    machine.shell("kill $mover; wait $mover")


def _saved(machine: Machine, start: int, size: int) -> bytes:
    file = machine.folder / "memory"
    machine.qmp("pmemsave", val=start, size=size, filename=str(file))
    return file.read_bytes()


def _differing(ours: bytes, theirs: bytes) -> list[int]:
    """Where pages are that differ."""
    assert len(ours) == len(theirs)
    return [at for at in range(0, len(ours), PAGE) if ours[at : at + PAGE] != theirs[at : at + PAGE]]


def _syncs(machine: Machine) -> int:
    """How often a migration has read KVM's log."""
    return int(machine.qmp("query-migrate").get("ram", {}).get("dirty-sync-count", 0))


def write_unseen(machine: Machine) -> int:
    """The guest shows its device's memory, writes a page of it, and hides it; returns the page's number.

    Until then nobody has read the log that the page is in.  It is the last one, too: KVM begins the log of a slot with all
    pages marked, so what a log has lost as its slot went comes up again if a later one is read.
    """
    for page in range(1, 20):
        before = _syncs(machine)
        machine.shell(f"decode 2; devmem {BAR_PLACES[0] + page * PAGE:#x} 32 {page}; decode 0")
        if _syncs(machine) == before:
            return page
    raise Stuck("the guest writes a page while nobody reads the log")


def begin_endless_migration(machine: Machine, uri: str) -> bool:
    """All memory has been sent once, and what is written goes on to be sent, slowly.

    Whether it does: QEMU stops the guest and ends the migration where nothing was written between two reads of the log, of
    which there are many in a moment until it is slow.  A vCPU that does not get a processor for so long is enough.
    """
    # Nothing that writes can be stopped for so short
    machine.qmp("migrate-set-parameters", max_bandwidth=FAST, downtime_limit=1)
    machine.qmp("migrate", uri=uri)
    machine.until(lambda: _syncs(machine) > 2, "all memory at the destination")
    machine.qmp("migrate-set-parameters", max_bandwidth=SLOW)
    return bool(machine.qmp("query-migrate")["status"] == "active")


def end_migration(machine: Machine) -> str:
    machine.qmp("migrate-set-parameters", max_bandwidth=FAST, downtime_limit=2000)
    return until_migrated(machine)


@contextmanager
def destination_of(machine: Machine, number: int) -> Iterator[tuple[Machine, str]]:
    """The same machine, which waits for a migration and does not run after it; and where it waits."""
    folder = machine.folder / f"destination-{number}"
    folder.mkdir()
    uri = f"unix:{folder / 'migration'}"
    command = [word.replace(str(machine.folder), str(folder)) for word in machine.command]
    destination = Machine([*command, "-S", "-incoming", "defer"], folder, machine.timeout)
    try:
        destination.begin()
        destination.qmp("migrate-incoming", uri=uri)
        yield destination, uri
    finally:
        destination.end()


def transferred(machine: Machine, destination: Machine) -> Json:
    """Ends an endless migration after a write that nobody has seen, and compares page by page what has arrived."""
    unseen = write_unseen(machine)
    status = end_migration(machine)
    destination.until(lambda: destination.qmp("query-status")["status"] == "paused", "what is migrated")
    # What is at addresses; but for VGA's, where there is no memory
    ranges = [(0, 0xA0000), (0xC0000, 0x40000)]
    ranges += [(at, min(CHUNK, MEMORY - at)) for at in range(1 << 20, MEMORY, CHUNK)]
    pages, differ = 0, []
    for start, size in ranges:
        pages += size // PAGE
        differ += [start + at for at in _differing(_saved(machine, start, size), _saved(destination, start, size))]
    # The device's, which is at none
    bars = [(place.folder / BAR_FILE).read_bytes() for place in (machine, destination)]
    pages += BAR_SIZE // PAGE
    bar_differs = _differing(bars[0], bars[1])
    written = int.from_bytes(bars[0][unseen * PAGE : unseen * PAGE + 4], "little")
    return {"status": status, "pages": pages, "differ": differ, "bar_differs": bar_differs, "unseen": [unseen, written]}


def transfer(machine: Machine) -> Json:
    """Migrates the guest, which writes and shows and hides its device's memory, and compares page by page what has arrived.

    The source goes on afterwards, as if its migration had failed at the very end.
    """
    define_bar_commands(machine)
    machine.shell(f"move '{_words(BAR_PLACES[0])}'; decode 0")
    busy(machine)
    found: Json = {}
    for number in range(MOST_TRANSFERS):
        with destination_of(machine, number) as (destination, uri):
            if begin_endless_migration(machine, uri):
                found = transferred(machine, destination)
        machine.qmp("cont")
        if found:
            break
    else:
        raise Stuck(f"a migration that goes on: {MOST_TRANSFERS} ended at once")
    rest(machine)
    machine.shell("decode 2")
    return found


def dirty_rate(machine: Machine) -> Json:
    """Measures how much the guest writes while the device's memory moves; what it writes there counts, too.

    Three times, and on until a rate is not zero: a slow guest may not come to write a megabyte in a second.
    """
    busy(machine)
    restless_bar(machine)
    rates: list[int] = []
    while len(rates) < 3 or (len(rates) < 30 and not any(rates)):
        machine.qmp("calc-dirty-rate", calc_time=1, mode="dirty-bitmap")
        machine.until(lambda: machine.qmp("query-dirty-rate")["status"] == "measured", "the dirty rate")
        rates.append(machine.qmp("query-dirty-rate")["dirty-rate"])
    still_bar(machine)
    rest(machine)
    return {"rates": rates}


ACTIONS: dict[str, Callable[[Machine], Json]] = {
    "dimm": dimm,
    "virtio-mem": virtio_mem,
    "migration": migration,
    "bar": move_bar,
    "dirty-rate": dirty_rate,
    "transfer": transfer,
}
