# SPDX-License-Identifier: GPL-2.0
"""The programs that measure: what they tell is of what was asked for; and counts of instructions, which no load changes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from building import BUILD, make
from conftest import watched
from debian import PROJECT
from kernels import KERNELS
from runner import VM, Outcome, Result

Run = Callable[..., Result]
Report = dict[str, Any]


@pytest.fixture(scope="module")
def programs() -> Path:
    """Where the programs are, built."""
    make(PROJECT / "bench")
    return BUILD / "bench"


def test_slot_bench_compares_like_with_like(programs: Path, run_in_vm: Run) -> None:
    """How much faster is for people to read (make demo): machines are noisy."""
    report: Report = json.loads(run_in_vm(programs / "slot_bench", "--rounds", "2").stdout)
    assert report["vcpus"] == 1
    for name in ("three_changes", "create_512", "delete_512"):
        assert report[name]["strategy"] == "fence"
    for name in ("three_changes", "delete_512", "create_512"):
        assert report[name]["samples"] > 0
        assert report[name]["one_by_one_ns"] > 0 < report[name]["batched_ns"]


def test_slot_bench_by_time(programs: Path, run_in_vm: Run) -> None:
    """Not before there are enough samples, and not without end; nothing else than what was asked for."""
    arguments = ["--work", "three", "--other", "0", "--rounds", "5", "--seconds", "1"]
    result = run_in_vm(programs / "slot_bench", *arguments)
    report: Report = json.loads(result.stdout)
    assert report.keys() == {"vcpus", "other_mib", "three_changes"}
    # A round is a split and a merge
    assert report["three_changes"]["samples"] >= 2 * 5
    assert report["three_changes"]["ratio_error"] > 0


@pytest.mark.every_kernel
def test_one_change_costs_what_kvm_asks_for_it(programs: Path, kernel_version: str) -> None:
    """In instructions, so that no load on the machine matters: `make bench` shows them.

    A commit of one change does all that KVM does for it, and waits as often. It copies a larger request and reply,
    plans, and raises the fence besides, which is 3 to 5 thousand instructions whatever the change; so it shows most
    where KVM has least to do (23 % where it stops logging, on 6.1). Of three changes it saves KVM's waiting and its
    dropping of all translations.
    """
    if KERNELS[kernel_version].built_from:
        pytest.skip("a kernel that checks every access of the module makes it dear")
    with VM(kernel_version, module=True, counting=True) as counting_vm, watched(counting_vm) as machine:
        result = machine.run(programs / "slot_bench", "--vcpus", "0", "--other", "0", "--rounds", "20")
    assert result.outcome is Outcome.OK, result.report()
    report: Report = json.loads(result.stdout)
    single = [report[f"{name}_one"] for name in ("create", "move", "log", "unlog", "delete")]
    assert all(work["batched_ns"] < work["one_by_one_ns"] + 6000 for work in single), single
    assert all(work["batched_ns"] < 1.3 * work["one_by_one_ns"] for work in single), single
    for name in ("move", "delete"):
        assert report[f"{name}_one"]["strategy"] == "fence"
    assert report["three_changes"]["batched_ns"] < report["three_changes"]["one_by_one_ns"]


@pytest.mark.parametrize("arguments", [["--work", "none"], ["--seconds", "0"], ["--rounds", "x"], ["word"]], ids=" ".join)
def test_wrong_usage_of_slot_bench(programs: Path, arguments: list[str]) -> None:
    done = subprocess.run([programs / "slot_bench", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "slot_bench: " in done.stderr
    assert done.stdout == ""
