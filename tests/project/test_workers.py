# SPDX-License-Identifier: GPL-2.0
"""How `make test` shares its tests out to several workers, and what it says meanwhile."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from debian import PROJECT

TESTS_FOLDER = PROJECT / "tests"

TESTS = """
import os
import pytest
from debian import PROJECT

@pytest.mark.parametrize("number", range(8))
def test_it(number, request):
    with open(request.path.with_name("workers"), "a") as file:
        print(os.environ["PYTEST_XDIST_WORKER"], file=file)
    assert number != 3
    assert not any(name.startswith("MAKE") for name in os.environ)
"""


@pytest.fixture
def output(tmp_path: Path) -> str:
    """Of two workers that have eight tests of one file to run, the fourth of which fails."""
    (tmp_path / "test_it.py").write_text(TESTS)
    command = ["/usr/bin/python3", "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadgroup"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment["PYTHONPATH"] = str(TESTS_FOLDER)
    # As `make test` starts it; a make that a test starts would say which directory it enters
    environment |= {"MAKEFLAGS": "w", "MAKELEVEL": "1"}
    done = subprocess.run([*command, tmp_path], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "1 failed, 7 passed" in done.stdout, done.stdout + done.stderr
    return done.stdout


def test_one_worker_runs_the_tests_of_a_file(output: str, tmp_path: Path) -> None:
    """Else each would boot the VMs of all, and tests that follow each other would not."""
    workers = (tmp_path / "workers").read_text().split()
    assert len(workers) == 8 and len(set(workers)) == 1, output


def test_who_fails_is_named_at_once(output: str) -> None:
    before, _, _ = output.partition("= FAILURES =")
    assert "\nfailed: test_it.py::test_it[3]" in before, output
