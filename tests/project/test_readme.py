# SPDX-License-Identifier: GPL-2.0
"""What README.md tells people to type, typed where nothing is installed; and its picture."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import roots
from checks import Tree
from debian import CACHE, PROJECT, release

README = (PROJECT / "README.md").read_text()
SUITES = ("bookworm", "trixie")

# Makes the commands short: the demo with few boots and samples, which is where commits are made in a VM; all is built that
# the tests need, and one test is run that needs no VM.
SHORT = {
    "make demo": {"QUICK": "1"},
    "make test": {"KERNELS": "6.1", "BRIEF_KERNELS": "", "PYTEST_ARGS": "-k test_two_lines_do_it_all"},
}


def commands() -> dict[str, str]:
    """The lines to try it, by what they end with."""
    block = re.search(r"^## Try it$.*?^```sh\n(.*?)^```$", README, re.M | re.S)
    assert block
    lines = [line.partition("#")[0].strip() for line in block[1].splitlines()]
    return {line.rpartition("&& ")[2]: line for line in lines}


def test_two_lines_do_it_all() -> None:
    assert list(commands()) == list(SHORT)
    assert all("\n" not in line and "apt" not in line for line in commands().values())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Without --all only the Debian that this machine is not: this one runs the commands already."""
    if "suite" in metafunc.fixturenames:
        both = metafunc.config.getoption("--all")
        metafunc.parametrize("suite", [suite for suite in SUITES if both or suite != release()])


def test_lines_work_in_a_minimal_debian(suite: str, tmp_path: Path) -> None:
    """One after the other in one root: the second one finds installed what the first one has installed."""
    project, archives = tmp_path / "memslot", CACHE / "apt" / f"archives-{suite}"
    for name in Tree().names:
        copy = project / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, copy, follow_symlinks=False)
    (project / ".cache").mkdir()
    archives.mkdir(parents=True, exist_ok=True)
    variables = {name: value for values in SHORT.values() for name, value in values.items()}
    script = "cd /root/memslot\n" + "\n".join(f"{line} || exit" for line in commands().values())
    shared = {project: "/root/memslot", CACHE: "/root/memslot/.cache", archives: "/var/cache/apt/archives"}
    words = ["env", *(f"{name}={value}" for name, value in variables.items()), "/bin/sh", "-c", script]
    done = roots.contain(roots.minimal(suite), f"readme-{suite}", *words, shared=shared)
    assert done.returncode == 0, done.stdout
    fenced = re.search(r"│   fenced: no vCPU left KVM_RUN +│ +│ +([\d,]+) │", done.stdout)
    assert fenced and int(fenced[1].replace(",", "")) > 0, done.stdout
    # pytest-xdist counts what its workers deselected in Debian 12 only
    assert re.search(r"^=* ?1 passed(?:, \d+ deselected)? in ", done.stdout, re.M), done.stdout


def test_picture_is_what_its_script_draws() -> None:
    drawn = subprocess.run([sys.executable, PROJECT / "docs" / "idea.py"], capture_output=True, check=True).stdout
    assert (PROJECT / "docs" / "idea.svg").read_bytes() == drawn


def test_links_lead_somewhere() -> None:
    sections = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", README, re.M)}
    links = re.findall(r"\]\(([^)\s]+)\)", README)
    assert links
    for link in links:
        if link.startswith("#"):
            assert link[1:] in sections, link
        elif not link.startswith("https://"):
            assert os.path.exists(PROJECT / link), link


def test_words_are_explained_before_they_are_used() -> None:
    for word in ("torn", "fenced", "parked"):
        first = re.search(rf"\b{word}\b", README)
        assert first and README[: first.start()].endswith("***"), word
