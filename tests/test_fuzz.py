# SPDX-License-Identifier: GPL-2.0
"""A short run of the ioctl fuzzer; make fuzz-ioctl makes long ones, on a kernel that checks everything."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from runner import Result

PROJECT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("BUILD", PROJECT / "build"))
SECONDS = 20

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
    subprocess.run(["make", "--silent", "-C", PROJECT / "tests/fuzz", f"BUILD={BUILD}"], check=True)
    return BUILD / "fuzz/ioctl"


def test_ioctls_stand_it(fuzzer: Path, run_in_vm: Callable[..., Result]) -> None:
    output = run_in_vm(fuzzer, "--seconds", str(SECONDS), "--calls", str(1 << 40)).stdout
    print(output)
    met = {name: dict(ERROR.findall(errors)) for name, _, errors in LINE.findall(output)}
    missed = {
        name: missing for name, errors in MET.items() if (missing := set(errors.split()) - met.get(name, {}).keys())
    }
    assert not missed, output
    for name, errors in met.items():
        for error in errors:
            assert error == "ok" or hasattr(errno, error), f"{name}: {error}"


@pytest.mark.parametrize("arguments", [["--calls"], ["--calls", "x"], ["--unknown"], ["word"]], ids=" ".join)
def test_wrong_usage(fuzzer: Path, arguments: list[str]) -> None:
    done = subprocess.run([fuzzer, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "ioctl: " in done.stderr
    assert done.stdout == ""


def test_syzkaller_knows_the_interface(tmp_path: Path) -> None:
    """Its description has each struct of the header, field by field, and no name that is not there."""
    description = (PROJECT / "tests/fuzz/memslot.txt").read_text()
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
