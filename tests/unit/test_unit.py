# SPDX-License-Identifier: GPL-2.0
"""Each GoogleTest of tests/unit is an item of its own."""

from __future__ import annotations

import functools
import json
import subprocess

import pytest
from building import make
from debian import PROJECT

BINARY = PROJECT / "build" / "unit" / "test_plan"


def names_of_tests() -> list[str]:
    make(PROJECT / "tests" / "unit")
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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", names_of_tests())


def test_unit(name: str) -> None:
    assert name in results(), "did not run"
    assert not results()[name], "\n".join(results()[name])
