# SPDX-License-Identifier: GPL-2.0
"""Debian's own QEMU, unmodified: dies without the module, boots with it."""

from __future__ import annotations

import re
from collections.abc import Callable

from runner import Result
from systems import boot, boot_by_commits

# Nine of ten stock boots die, so six that all live are one in a million.
MOST_STOCK_BOOTS = 6


def test_stock_boots_die(run_in_vm: Callable[..., Result]) -> None:
    """Since 8.0, which Debian 13 has a later one of, QEMU takes its vCPUs out of the guest and has no holes."""
    version = re.search(r"version (\d+)\.", run_in_vm("qemu-system-x86_64", "--version").stdout)
    assert version
    if int(version[1]) >= 8:
        assert boot(run_in_vm)["outcome"] == "finished"
        return
    outcomes: list[str] = []
    while "died" not in outcomes and len(outcomes) < MOST_STOCK_BOOTS:
        outcomes.append(boot(run_in_vm)["outcome"])
    assert "died" in outcomes, "the reason for all this is gone: stock QEMU boots"


def test_boots_with_memslot_run_finish(run_in_vm: Callable[..., Result]) -> None:
    for _ in range(2):
        boot_by_commits(run_in_vm)
