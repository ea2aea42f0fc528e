# SPDX-License-Identifier: GPL-2.0
"""make check: each check finds nothing here, and does find something where there is something."""

from __future__ import annotations

import shutil
from pathlib import Path

import checks
import pytest
from checks import CHECKS, Tree
from debian import PROJECT

DEREFERENCES = """
int memslot_seeded(int n);
int memslot_seeded(int n)
{
	int *nothing = NULL;

	return n ? *nothing : 0;
}
"""
MIXES_ADDRESS_SPACES = """
int memslot_seeded(int __user *theirs);
int memslot_seeded(int __user *theirs)
{
	int *ours = theirs;

	return !ours;
}
"""
CHECKS_FOR_NOTHING = """
void memslot_seeded(void *memory);
void memslot_seeded(void *memory)
{
	if (memory)
		kfree(memory);
}
"""
UNUSED = """
static int memslot_seeded;
"""

MISSPELT = "kn" + "won"

# A check, a file, what is appended to it, and a word of what the check says then.
SEEDS = [
    ("checkpatch", "module/device.c", "int seeded ;\n", "SPACING"),
    ("checkpatch", "tests/kselftest/query.c", "int seeded;   \n", "TRAILING_WHITESPACE"),
    ("clang-format", "userlib/memslot.hpp", "int   seeded;\n", "clang-format"),
    ("clang-tidy", "userlib/examples/replace.cpp", "int *seeded = 0;\n", "modernize-use-nullptr"),
    ("codespell", "README.md", f"It is {MISSPELT}.\n", MISSPELT),
    ("coccinelle", "module/device.c", CHECKS_FOR_NOTHING, "NULL check"),
    ("mypy", "bench/demo.py", "seeded: int = ''\n", "assignment"),
    ("shellcheck", "scripts/setup", "echo $1\n", "SC2086"),
    ("sparse", "module/device.c", MIXES_ADDRESS_SPACES, "different address spaces"),
    ("sparse", "module/device.c", UNUSED, "unused-variable"),
    ("analyzer", "module/device.c", DEREFERENCES, "core.NullDereference"),
    ("analyzer", "module/plan.c", f"#ifndef __KERNEL__\n{DEREFERENCES}#endif\n", "core.NullDereference"),
]


@pytest.mark.parametrize("name", CHECKS)
def test_finds_nothing(name: str) -> None:
    said = CHECKS[name](Tree())
    assert not said, said


@pytest.mark.parametrize(("name", "file", "seed", "word"), SEEDS, ids=[f"{seed[0]}-{seed[3]}" for seed in SEEDS])
def test_finds_what_is_there(name: str, file: str, seed: str, word: str, tmp_path: Path) -> None:
    for source in Tree().names:
        copy = tmp_path / source
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / source, copy)
    tree = Tree(tmp_path, [file])
    with open(tmp_path / file, "a", encoding="utf-8") as changed:
        changed.write(seed)
    assert word in CHECKS[name](tree)


def test_every_check_is_tried() -> None:
    assert {seed[0] for seed in SEEDS} == set(checks.CHECKS)
