# SPDX-License-Identifier: GPL-2.0
"""Short runs of the fuzzers: `make fuzz-plan` makes long ones, and `make fuzz-ioctl` on a kernel that checks everything."""

from __future__ import annotations

import errno
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from building import BUILD, make
from debian import PROJECT
from runner import Result

SECONDS = 20
MOST_ROUNDS = 10

# In syzkaller's language: a struct, and what its fields are
STRUCT = re.compile(r"^(memslot_\w+) \{\n(.*?)^\}", re.M | re.S)
FIELD = re.compile(r"^\t(\w+)\t+(.*?)(?:\t\(out\))?$", re.M)
SIZES = {
    r"fd_\w+|int32.*|(?:const|flags|len|bytesize)\[.*, int32\]": 4,
    r"int64|(?:ptr64|vma64)\[.*\]|(?:flags|bytesize)\[.*, int64\]": 8,
    r"array\[int64, 2\]": 16,
}

LINE = re.compile(r"(\S+) +(\d+):((?: \w+=\d+)*)")
ERROR = re.compile(r"(\w+)=(\d+)")

# What a run meets for certain: success, and each way to refuse that does not take a rare accident.
MET = {
    "INFO": "ok EINVAL E2BIG EFAULT EOPNOTSUPP",
    "BIND": "ok EINVAL E2BIG EFAULT EOPNOTSUPP EBUSY EBADF",
    "STAGE": "ok EINVAL E2BIG EFAULT EOPNOTSUPP ENOTCONN EACCES",
    "COMMIT": "ok EINVAL E2BIG EFAULT EOPNOTSUPP ENOTCONN EACCES ENOENT EEXIST ESTALE",
    "RESET": "ok EINVAL E2BIG EFAULT EOPNOTSUPP ENOTCONN EACCES",
    "QUERY": "ok EINVAL E2BIG EFAULT EOPNOTSUPP ENOTCONN ENOSPC",
    "unknown": "ENOTTY",
    "kvm:SET_USER_MEMORY_REGION": "ok EINVAL EEXIST",
    "kvm:GET_DIRTY_LOG": "ok ENOENT",
    "kvm:CREATE_VCPU": "ok EEXIST",
}


@pytest.fixture(scope="module")
def fuzzer() -> Path:
    make(PROJECT / "tests/fuzz")
    return BUILD / "fuzz/ioctl"


def test_ioctls_stand_it(fuzzer: Path, run_in_vm: Callable[..., Result]) -> None:
    met: dict[str, set[str]] = {}
    missed = {name: set(errors.split()) for name, errors in MET.items()}
    rounds = 0
    # A busy machine comes to less in a round
    while any(missed.values()) and rounds < MOST_ROUNDS:
        output = run_in_vm(fuzzer, "--seconds", str(SECONDS), "--calls", str(1 << 40)).stdout
        print(output)
        for name, _, errors in LINE.findall(output):
            met.setdefault(name, set()).update(error for error, _ in ERROR.findall(errors))
        missed = {name: set(errors.split()) - met.get(name, set()) for name, errors in MET.items()}
        rounds += 1
    assert not any(missed.values()), missed
    for name, errors in met.items():
        for error in errors:
            assert error == "ok" or hasattr(errno, error), f"{name}: {error}"


@pytest.mark.parametrize("arguments", [["--calls"], ["--calls", "x"], ["--unknown"], ["word"]], ids=" ".join)
def test_wrong_usage(fuzzer: Path, arguments: list[str]) -> None:
    done = subprocess.run([fuzzer, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "ioctl: " in done.stderr
    assert done.stdout == ""


def test_plan_stands_it() -> None:
    folder = PROJECT / "tests" / "fuzz"
    executed = rounds = 0
    # A busy machine needs more of them
    while executed <= 5000 and rounds < 20:
        run = subprocess.run(
            ["make", "--silent", "-C", folder, "plan", "FUZZ_SECONDS=20"], capture_output=True, text=True, errors="replace"
        )
        assert run.returncode == 0, run.stderr[-10000:]
        units = re.search(r"^stat::number_of_executed_units: (\d+)$", run.stderr, re.M)
        assert units, run.stderr[-10000:]
        executed += int(units[1])
        rounds += 1
    assert executed > 5000


def test_syzkaller_knows_the_interface(tmp_path: Path) -> None:
    """Its description has each struct of the header, field by field, and no name that is not there."""
    description = (PROJECT / "tests/fuzz/syzkaller/dev_memslot.txt").read_text()
    header = (PROJECT / "uapi/linux/memslot.h").read_text()
    structs = {name: FIELD.findall(body) for name, body in STRUCT.findall(description)}
    assert structs.keys() == set(re.findall(r"^struct (\w+) \{", header, re.M))
    for name in set(re.findall(r"\bMEMSLOT_\w+", description.replace("ioctl$MEMSLOT", ""))):
        assert re.search(rf"#define {name}\b", header), name
    assert set(re.findall(r"const\[(MEMSLOT_IOC_\w+)\]", description)) == set(
        re.findall(r"#define (MEMSLOT_IOC_\w+) _IO", header)
    )
    checks = ["#include <stddef.h>", "#include <linux/memslot.h>"]
    for name, fields in structs.items():
        offset = 0
        for field, kind in fields:
            (size,) = (size for pattern, size in SIZES.items() if re.fullmatch(pattern, kind))
            checks.append(f'_Static_assert(offsetof(struct {name}, {field}) == {offset}, "{name}.{field}");')
            offset += size
        checks.append(f'_Static_assert(sizeof(struct {name}) == {offset}, "{name}");')
        if name == "memslot_entry":
            assert set(re.findall(r"entry_size\tconst\[(\d+),", description)) == {str(offset)}
    source = tmp_path / "check.c"
    source.write_text("\n".join(checks) + "\n")
    command = ["gcc", "-fsyntax-only", f"-I{PROJECT / 'uapi'}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
