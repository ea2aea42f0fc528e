# SPDX-License-Identifier: GPL-2.0
"""What the benchmarks have in common: their options, and a test VM with the module loaded."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "scripts"), str(PROJECT / "vmtest")]

from debian import DebianError  # noqa: E402
from kernels import KERNELS  # noqa: E402
from options import at_least  # noqa: E402
from runner import DEFAULT_KERNEL, DEFAULT_MEMORY, VM, Outcome, VMError  # noqa: E402

BUILD = PROJECT / "build"

Json = dict[str, Any]


def common_options(description: str, output: str) -> argparse.ArgumentParser:
    """Options that all have; output: where the results go, in build/."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--kernel", choices=list(KERNELS), default=DEFAULT_KERNEL, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=BUILD / output, help=f"default: build/{output}")
    return parser


def add_rounds(parser: argparse.ArgumentParser, default: int, of_what: str = "") -> None:
    """How often each thing is measured."""
    parser.add_argument("--rounds", type=at_least(1), default=default, help=f"{of_what}default: %(default)s")


def reports(
    program: Path, runs: Sequence[Sequence[str]], kernel: str, *, counting: bool = False, titles: Sequence[str] = (),
    memory: int = DEFAULT_MEMORY,
) -> list[Json]:
    """What each run of a program prints; they share a VM.  Shows that they move.  Ends this program, with a message, where one fails.

    counting: nanoseconds are instructions.  titles: what is said of each run, for how many there are.  memory: of the VM, MiB.
    """
    if not program.exists():
        sys.exit(f"bench: {program} is not built yet; run `make bench`")
    found: list[Json] = []
    print(f"{program.name} in a test VM: ", end="\n" if titles else "", flush=True)
    try:
        with VM(kernel, module=True, memory=memory, counting=counting) as vm:
            for number, arguments in enumerate(runs):
                if titles:
                    print(f"{number + 1} of {len(runs)}, {titles[number]}: ", end="", flush=True)
                # A dot for each line that it has for people
                result = vm.run(
                    program, *arguments, timeout=600, on_stderr=lambda data: print("." * data.count(b"\n"), end="", flush=True)
                )
                print(flush=True)
                if result.outcome is not Outcome.OK or result.complaints:
                    sys.exit(result.report())
                found.append(json.loads(result.stdout))
    except (VMError, DebianError) as error:
        sys.exit(f"bench: {error}")
    return found
