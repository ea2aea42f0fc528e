# SPDX-License-Identifier: GPL-2.0
"""Where people clone: the VM boots from there and finds the project, or one sentence says why that cannot work."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian import CACHE, PROJECT
from initramfs import AGENT
from runner import VM

# What vmtest/run needs of the project, and what make needs to call it.
FILES = ("Makefile", "versions.mk", "dkms.conf")

# Runs a command ($3 and on) in the directory $2, which has this project's cache ($1): everything that is below it is
# really there, on another file system than the directory itself, and not behind a symbolic link.
WITH_CACHE = """
set -e
mount --bind "$1" "$2/.cache"
cd "$2"
shift 2
exec "$@"
"""
# The same with a directory that is a file system of its own, after the copy ($3) that it gets its files from.
ON_TMPFS = """
set -e
cache=$1 directory=$2
mount -t tmpfs tmpfs "$directory"
cp -a "$3/." "$directory"
mount --bind "$cache" "$directory/.cache"
cd "$directory"
shift 3
exec "$@"
"""
# In the VM: the project is there, for reading and for writing; so are its modules and what was built.
LOOK = """
set -e
test "$(pwd -P)" = "$1"
test -f "$1/versions.mk" && test -d "$1/.cache/kernels"
test -c /dev/memslot
modprobe configs 2>/dev/null || modprobe loop
echo written > "$1/build/new" && cat "$1/build/new"
for own in /tmp /run /dev/shm; do mountpoint -q $own; done
touch /tmp/own /run/own /dev/shm/own
"""


def copy_project(place: Path) -> None:
    """A checkout with what was built here, as far as the VM needs it."""
    for folder in ("scripts", "vmtest"):
        shutil.copytree(PROJECT / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(PROJECT / name, place / name)
    module = VM(module=True).module_path
    for path in (module, AGENT):
        copy = place / path.relative_to(PROJECT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            shutil.copy2(path, copy)
    (place / ".cache").mkdir()


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A new directory with a copy of the project, by the name of one above it and its own."""
    above, name = request.param
    with tempfile.TemporaryDirectory(prefix="memslot-", dir=above) as directory:
        place = Path(directory) / name
        place.mkdir()
        copy_project(place)
        yield place


def boot(script: str, *arguments: str | Path, env: dict[str, str] | None = None, at: Path) -> None:
    """Boots the VM with the script's mounts, and looks at the project in it, from where it is at."""
    run = ["vmtest/run", "--module", "--cpus", "1", "--memory", "512", "/bin/sh", "-c", LOOK, "sh", str(at)]
    command: list[str | Path] = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script, "sh", *arguments, *run]
    done = subprocess.run(command, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "written\n"), done.stdout + done.stderr


@pytest.mark.parametrize(
    "place",
    [("/tmp", "memslot"), ("/run", "memslot"), ("/dev", "memslot"), ("/dev/shm", "memslot"), ("/tmp", "é@+~x")],
    ids=lambda where: "-".join(where).replace("/", ""),
    indirect=True,
)
def test_the_vm_finds_a_project_below_its_own_file_systems(place: Path) -> None:
    boot(WITH_CACHE, CACHE.resolve(), place, at=place)


@pytest.mark.parametrize("place", [("/tmp", "memslot")], indirect=True)
def test_a_project_whose_cache_is_a_link(place: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="memslot-", dir="/dev/shm") as elsewhere:
        cache = Path(elsewhere) / "cache"
        cache.mkdir()
        (place / ".cache").rmdir()
        (place / ".cache").symlink_to(cache)
        boot(WITH_CACHE, CACHE.resolve(), place, at=place)


@pytest.mark.parametrize("place", [(str(PROJECT / "build"), "memslot")], indirect=True)
@pytest.mark.parametrize("above", ["/tmp", "/root"])
def test_a_project_that_is_reached_through_a_link(place: Path, above: str) -> None:
    with tempfile.TemporaryDirectory(prefix="memslot-", dir=above) as directory:
        link = Path(directory) / "link"
        link.symlink_to(place)
        look = LOOK.replace('"$(pwd -P)" = "$1"', '"$1" -ef .')
        run = ["vmtest/run", "--module", "--cpus", "1", "--memory", "512", "/bin/sh", "-c", look, "sh", str(link)]
        command = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", WITH_CACHE, "sh"]
        done = subprocess.run(
            [*command, CACHE.resolve(), link, "env", f"PWD={link}", *run],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (0, "written\n"), done.stdout + done.stderr


@pytest.mark.parametrize("place", [("/tmp", "memslot")], indirect=True)
@pytest.mark.parametrize("above", ["/tmp", str(PROJECT / "build")])
def test_a_project_that_is_on_another_file_system(place: Path, above: str) -> None:
    with tempfile.TemporaryDirectory(prefix="memslot-", dir=above) as directory:
        boot(ON_TMPFS, CACHE.resolve(), Path(directory), place, at=Path(directory))


ENTRIES = (["make", "demo"], ["make", "test"], ["make", "tools"], ["vmtest/run", "true"])


def refusal(command: list[str], cwd: Path) -> str:
    """What an entry says where it cannot work; nothing may have been made."""
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode != 0
    assert not (cwd / "build").exists() and list((cwd / ".cache").iterdir()) == []
    own = [line for line in done.stderr.splitlines() if line.startswith("setup: ")]
    assert len(own) == 1 and done.stdout == "", done.stdout + done.stderr
    return own[0]


@pytest.mark.parametrize("name", ["a b", "a:b", "a,b", "a%b", "a'b", 'a"b', "a$b", "a#b", "a\\b", "a[b", "a]b", "a;b", "a(b", "a=b"])
def test_a_path_that_cannot_work_is_refused_at_once(name: str, tmp_path: Path) -> None:
    place = tmp_path / name
    copy_project(place)
    shutil.rmtree(place / "build", ignore_errors=True)
    for entry in ENTRIES:
        assert f"does not work in {place}: move the project to" in refusal(entry, place)


OTHERS = {
    "ubuntu": 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\n',
    "fedora": "ID=fedora\nVERSION_ID=41\n",
    "older": 'ID=debian\nVERSION_ID="11"\n',
    "testing": "ID=debian\nVERSION_CODENAME=forky\n",
    "empty": "",
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_system_is_told_what_to_use_at_once(name: str, tmp_path: Path) -> None:
    place = tmp_path / "memslot"
    copy_project(place)
    shutil.rmtree(place / "build", ignore_errors=True)
    other = tmp_path / "os-release"
    other.write_text(OTHERS[name])
    script = 'mount --bind "$1" /etc/os-release && shift && exec "$@"'
    inside = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script, "sh", str(other)]
    for entry in (*ENTRIES, ["scripts/setup"]):
        said = refusal([*inside, *entry], place)
        assert "on Debian 12 and 13 on x86-64 only" in said and "docker run" in said and str(place) in said
