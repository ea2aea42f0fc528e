# SPDX-License-Identifier: GPL-2.0
"""Runs a benchmark in a test VM with the module loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "tests" / "vm"))

from runner import VM, Outcome, VMError  # noqa: E402

BUILD = PROJECT / "build"

Json = dict[str, Any]


def reports(program: Path, runs: Iterable[Sequence[str]], *, counting: bool = False) -> list[Json]:
    """What each run of a program prints; they share a VM.  Ends this program, with a message, where one fails.

    counting: nanoseconds are instructions.
    """
    if not program.exists():
        sys.exit(f"bench: {program} is not built yet; run `make bench`")
    found: list[Json] = []
    try:
        with VM(module=True, counting=counting) as vm:
            for arguments in runs:
                result = vm.run(program, *arguments, timeout=600)
                if result.outcome is not Outcome.OK or result.complaints:
                    sys.exit(result.report())
                found.append(json.loads(result.stdout))
    except VMError as error:
        sys.exit(f"bench: {error}")
    return found
