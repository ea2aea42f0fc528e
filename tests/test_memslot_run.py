# SPDX-License-Identifier: GPL-2.0
"""memslot-run by itself; test_stock_qemu.py has it with a real VMM."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from runner import Result

PROJECT = Path(__file__).resolve().parent.parent
SOURCES = PROJECT / "tools" / "memslot-run"
TOOLS = PROJECT / "build" / "tools"
LAUNCHER_TEST = [SOURCES / "test" / "test_launcher", TOOLS / "memslot-run"]


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    programs: list[str | Path] = [TOOLS / "test_collector", TOOLS / "test_preload", "all"]
    subprocess.run(["make", "--silent", "-C", SOURCES, *programs], check=True)


@pytest.mark.parametrize("program", ["test_collector", "test_preload"])
def test_unit(program: str) -> None:
    """The collected changes, errors and commit moments, against a fake of the device."""
    done = subprocess.run([TOOLS / program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_launcher_without_the_module() -> None:
    """On the host, which has no /dev/memslot."""
    done = subprocess.run(LAUNCHER_TEST, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_launcher_with_the_module(run_in_vm: Callable[..., Result]) -> None:
    run_in_vm(*LAUNCHER_TEST)
