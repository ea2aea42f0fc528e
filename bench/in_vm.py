# SPDX-License-Identifier: GPL-2.0
"""What the benchmarks have in common: their options, a test VM with the module loaded, tables and plots."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "scripts"), str(PROJECT / "vmtest")]

from debian import SETUP, DebianError  # noqa: E402
from kernels import KERNELS  # noqa: E402
from runner import DEFAULT_KERNEL, DEFAULT_MEMORY, VM, Outcome, VMError  # noqa: E402

BUILD = PROJECT / "build"

Json = dict[str, Any]


def common_options(description: str, output: str) -> argparse.ArgumentParser:
    """Options that all have; output: where the results go, in build/."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--kernel", choices=list(KERNELS), default=DEFAULT_KERNEL, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=BUILD / output, help=f"default: build/{output}")
    return parser


def pyplot() -> Any:
    """What draws plots, without a display; Debian's, installed if it is missing.  Ends this program if it cannot be."""
    if subprocess.run([str(SETUP), "python3-matplotlib"], check=False).returncode:
        sys.exit("bench: packages that draw the plots are missing, see above")
    os.environ["MPLBACKEND"] = "Agg"
    drawing = importlib.import_module("matplotlib.pyplot")
    # The same figures make the same files
    drawing.rcParams["svg.hashsalt"] = "memslot"
    return drawing


def save(figure: Any, path: Path) -> None:
    """As SVG and as PNG; path: without a suffix."""
    figure.tight_layout()
    # Without a date and what else matplotlib says first, so that the licence is among the first lines
    about: Json = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    about["Rights"] = "SPDX-License-Identifier: GPL-2.0"
    for suffix in ("svg", "png"):
        figure.savefig(path.with_name(f"{path.name}.{suffix}"), dpi=120, metadata=about if suffix == "svg" else None)


def aligned(rows: Sequence[Sequence[str]], words: Container[int]) -> str:
    """A table, whose head is the first row; words: numbers of the columns that are not numbers."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join(cell.ljust(width) if i in words else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:]])


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
                print(f" {result.seconds:.0f} s" if titles else "", flush=True)
                if result.outcome is not Outcome.OK or result.complaints:
                    sys.exit(result.report())
                found.append(json.loads(result.stdout))
    except (VMError, DebianError) as error:
        sys.exit(f"bench: {error}")
    return found
