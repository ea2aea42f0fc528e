# SPDX-License-Identifier: GPL-2.0
"""make model: each model of the commit holds, and each mutation breaks the property that the table names."""

from __future__ import annotations

import check
import pytest


def test_tables_are_those_of_the_sources() -> None:
    assert not check.check_tables()


def name_of(run: check.Run) -> str:
    return run.name


@pytest.mark.parametrize("run", [*check.models(), *check.mutations()], ids=name_of)
def test_model(run: check.Run) -> None:
    verdict = check.check(run)
    assert not verdict.complaint, verdict.line
