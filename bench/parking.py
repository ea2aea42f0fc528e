#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""What parking costs against pausing in userspace: `make bench`.

In a test VM, for 1 to 16 vCPUs: the same change of three memslots with the
vCPUs parked by the module, and with the vCPUs stopped by the VMM by a flag and
a signal each, as QEMU does; side by side in one run.  Writes build/parking.json.
"""

from __future__ import annotations

import json

from in_vm import BUILD, Json, add_rounds, common_options, reports

BENCH = BUILD / "bench" / "park_bench"
VCPUS = (1, 2, 4, 8, 16)
COLUMNS = {
    "parked": "parked",
    "paused_nothing": "pause, nothing",
    "paused_batch": "pause, batch",
    "paused_one_by_one": "pause, KVM",
}


def row(cells: list[str]) -> str:
    return "│ " + " │ ".join(f"{cell:>14}" for cell in cells) + " │"


def rule(left: str, middle: str, right: str, columns: int) -> str:
    return left + middle.join(["─" * 16] * columns) + right


def table(found: list[Json], statistic: str) -> str:
    """Milliseconds per change; the last column is what pausing and KVM's own calls cost, in parked changes."""
    columns = len(COLUMNS) + 2
    lines = [rule("┌", "┬", "┐", columns), row(["vCPUs", *COLUMNS.values(), "pause / park"]), rule("├", "┼", "┤", columns)]
    for report in found:
        times = [report[name][statistic] for name in COLUMNS]
        cells = [str(report["vcpus"]), *(f"{ns / 1e6:.3f} ms" for ns in times), f"{times[3] / times[0]:.1f}"]
        lines.append(row(cells))
    return "\n".join([*lines, rule("└", "┴", "┘", columns)])


def main() -> None:
    parser = common_options("Parking against pausing; use `make bench`, which builds all it needs.", "parking.json")
    add_rounds(parser, 40, "of four changes each way; ")
    arguments = parser.parse_args()
    found = reports(BENCH, [[str(vcpus), str(arguments.rounds)] for vcpus in VCPUS], arguments.kernel)
    arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    for statistic in ("median", "mean", "p90"):
        print(f"One change of three memslots, {statistic}:")
        print(table(found, f"{statistic}_ns"))


if __name__ == "__main__":
    main()
