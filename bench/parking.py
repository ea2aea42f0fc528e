#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""What parking costs against pausing in userspace: `make bench`.

In a test VM, for 1 to 16 vCPUs: the same change of three memslots with the
vCPUs parked by the module, and with the vCPUs stopped by the VMM by a flag and
a signal each, as QEMU does; side by side in one run.  Writes build/parking.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "tests" / "vm"))

from runner import VM, Outcome, VMError  # noqa: E402

BENCH = PROJECT / "build" / "guests" / "park_bench"
VCPUS = (1, 2, 4, 8, 16)
COLUMNS = {
    "parked": "parked",
    "paused_nothing": "pause, nothing",
    "paused_batch": "pause, batch",
    "paused_one_by_one": "pause, KVM",
}

Json = dict[str, Any]


def row(cells: list[str]) -> str:
    return "│ " + " │ ".join(f"{cell:>14}" for cell in cells) + " │"


def rule(left: str, middle: str, right: str, columns: int) -> str:
    return left + middle.join(["─" * 16] * columns) + right


def table(reports: list[Json], statistic: str) -> str:
    """Milliseconds per change; the last column is what pausing alone costs, in parked changes."""
    columns = len(COLUMNS) + 2
    lines = [rule("┌", "┬", "┐", columns), row(["vCPUs", *COLUMNS.values(), "pause / park"]), rule("├", "┼", "┤", columns)]
    for report in reports:
        times = [report[name][statistic] for name in COLUMNS]
        cells = [str(report["vcpus"]), *(f"{ns / 1e6:.3f} ms" for ns in times), f"{times[3] / times[0]:.1f}"]
        lines.append(row(cells))
    return "\n".join([*lines, rule("└", "┴", "┘", columns)])


def main() -> int:
    parser = argparse.ArgumentParser(description="Parking against pausing; use `make bench`, which builds all it needs.")
    parser.add_argument("--rounds", type=int, default=40, help="of four changes each way; default: %(default)s")
    parser.add_argument("--output", type=Path, default=PROJECT / "build" / "parking.json", help="default: build/parking.json")
    arguments = parser.parse_args()
    if not BENCH.exists():
        print(f"bench: {BENCH} is not built yet; run `make bench`")
        return 2
    reports: list[Json] = []
    try:
        with VM(module=True) as vm:
            for vcpus in VCPUS:
                result = vm.run(BENCH, str(vcpus), str(arguments.rounds), timeout=300)
                if result.outcome is not Outcome.OK or result.complaints:
                    print(result.report())
                    return 1
                reports.append(json.loads(result.stdout))
    except VMError as error:
        print(f"bench: {error}")
        return 1
    arguments.output.write_text(json.dumps(reports, indent=2) + "\n")
    for statistic in ("median", "mean", "p90"):
        print(f"One change of three memslots, {statistic}:")
        print(table(reports, f"{statistic}_ns"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
