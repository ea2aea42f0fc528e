# SPDX-License-Identifier: GPL-2.0
"""Each GoogleTest of tests/unit is an item of its own, and so is a short run of the fuzzer."""

from __future__ import annotations

import functools
import json
import re
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
BINARY = PROJECT / "build" / "unit" / "test_plan"


def test_names() -> list[str]:
    subprocess.run(["make", "--silent", "-C", PROJECT / "tests" / "unit"], check=True)
    listing = subprocess.run([BINARY, "--gtest_list_tests"], check=True, capture_output=True, text=True).stdout
    names, suite = [], ""
    for line in listing.splitlines():
        if line.startswith("  "):
            names.append(suite + line.strip())
        elif line.endswith("."):
            suite = line
    return names


@functools.cache
def results() -> dict[str, list[str]]:
    """One run of them all: the failures of each."""
    report = BINARY.with_suffix(".json")
    report.unlink(missing_ok=True)
    run = subprocess.run([BINARY, f"--gtest_output=json:{report}"], capture_output=True, text=True)
    assert report.exists(), run.stdout + run.stderr
    suites = json.loads(report.read_text())["testsuites"]
    return {
        f"{suite['name']}.{test['name']}": [f["failure"] for f in test.get("failures", [])]
        for suite in suites
        for test in suite["testsuite"]
        if test["status"] == "RUN"
    }


test_names.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", test_names())
def test_unit(name: str) -> None:
    assert name in results(), "did not run"
    assert not results()[name], "\n".join(results()[name])


def test_fuzz() -> None:
    """`make fuzz` is the long version."""
    folder = PROJECT / "tests" / "unit"
    run = subprocess.run(
        ["make", "--silent", "-C", folder, "fuzz", "FUZZ_SECONDS=20"], capture_output=True, text=True, errors="replace"
    )
    assert run.returncode == 0, run.stderr[-10000:]
    executed = re.search(r"^stat::number_of_executed_units: (\d+)$", run.stderr, re.M)
    assert executed and int(executed[1]) > 5000, run.stderr[-10000:]
