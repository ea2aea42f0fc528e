# SPDX-License-Identifier: GPL-2.0
"""memslot-run by itself; test_stock_qemu.py has it with a real VMM."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from building import BUILD, make
from debian import PROJECT
from runner import Result

SOURCES = PROJECT / "tools" / "memslot-run"
TOOLS = BUILD / "tools"
VMM = TOOLS / "test_vmm"
MEMSLOT_RUN = TOOLS / "memslot-run"
LAUNCHER_TEST = [SOURCES / "tests" / "test_launcher", TOOLS / "memslot-run"]


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    programs: list[str | Path] = [TOOLS / "test_collector", TOOLS / "test_preload", VMM, "all"]
    make(SOURCES, *programs)


@pytest.mark.parametrize("program", ["test_collector", "test_preload"])
def test_unit(program: str) -> None:
    """The collected changes, errors and commit moments, against a fake of the device."""
    done = subprocess.run([TOOLS / program], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr


def test_launcher_without_the_module() -> None:
    """On the host, which has no /dev/memslot."""
    done = subprocess.run(LAUNCHER_TEST, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr


def test_launcher_with_the_module(run_in_vm: Callable[..., Result]) -> None:
    run_in_vm(*LAUNCHER_TEST)


def test_the_manual_has_the_rules() -> None:
    """The table of calls that do not commit first is the one that the library goes by."""
    names = {"nothing": "no", "if_collected": "if collected"}
    rules = re.findall(r'rule\{\w+, "(\w+)", before::(\w+),\s+"([^"]+)"\}', (SOURCES / "rules.hpp").read_text())
    assert len(rules) == (SOURCES / "rules.hpp").read_text().count("rule{KVM_") > 0
    manual = re.findall(r"^\.It Dv (KVM_\w+) Ta (.+) Ta (.+)$", (SOURCES / "memslot-run.1").read_text(), re.M)
    assert manual == [(name, names[what], why) for name, what, why in rules]


PARENT = "parent: still there: 0, child: 0\nincrements lost: 0\n"
CHILD = "parent: created: 1, still there: 0\nchild: created: 1, still there: 0\n"
VMMS = {
    "move": "increments lost: 0\n",
    "log": "written: 1, logged: 1\ngone: ENOENT, back: 0\n",
    "interrupt": "holes: 0, read: 0x42\n",
    "userfault": "read: 0x77\n",
    **dict.fromkeys(["fork", "_Fork", "clone", "raw", "atfork"], f"{CHILD}child: EIO\n{PARENT}"),
    **dict.fromkeys(["vfork", "spawn"], CHILD + PARENT),
    "daemonize": "before: created: 1, still there: 0\nafterwards: created: 1, still there: 0\n",
    "descriptors": "few: created: 1, still there: 0\n",
    "sockets": "still there: 0\ncreated: 1\n",
    "device-gone": "still there: 0\nincrements lost: 0\n",
}


@pytest.mark.parametrize("vmm", VMMS)
def test_vmm_sees_no_difference(run_in_vm: Callable[..., Result], vmm: str) -> None:
    """What a VMM may do with its memory, its processes and its descriptors: the same without and with memslot-run."""
    assert run_in_vm(VMM, vmm).stdout == VMMS[vmm]
    assert run_in_vm(MEMSLOT_RUN, "--", VMM, vmm).stdout == VMMS[vmm]
