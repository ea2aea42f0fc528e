#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""What a batch of one costs, beside KVM's own ioctl: `make bench`.

In a test VM a slot is created, moved, logged, no longer logged and deleted, by
KVM_SET_USER_MEMORY_REGION, by a commit of one entry, and by one that is asked
to park the vCPUs, in turn in one run.
Once with a vCPU running, by the clock.  And once with none, on one processor
that counts instructions: all of them, the grace period's included, so this is
the same on every machine.  Writes build/one_slot.json.
"""

from __future__ import annotations

import json

from in_vm import BUILD, Json, add_rounds, common_options, reports

BENCH = BUILD / "bench" / "slot_bench"
WORK = {
    "create_one": "create",
    "move_one": "move",
    "log_one": "log dirty pages",
    "unlog_one": "stop logging",
    "delete_one": "delete",
}


def show(title: str, report: Json) -> None:
    """One line per kind of change, and one for three changes in one batch."""
    print(title)
    print(f"  {'':16} {'KVM':>8} {'memslot':>8} {'parked':>8}   KVM / memslot   strategy")

    def line(name: str, kvm: float, ours: float, strategy: str = "", parked: float | None = None) -> None:
        asked = "" if parked is None else f"{parked / 1e3:.1f}"
        print(f"  {name:16} {kvm / 1e3:8.1f} {ours / 1e3:8.1f} {asked:>8}   {kvm / ours:13.2f}   {strategy}".rstrip())

    for key, name in WORK.items():
        work = report[key]
        line(name, work["one_by_one_ns"], work["batched_ns"], work["strategy"], work["parked_ns"])
    single = [report[key] for key in WORK]
    line("one of each", sum(work["one_by_one_ns"] for work in single), sum(work["batched_ns"] for work in single))
    three = report["three_changes"]
    line("split or merged", three["one_by_one_ns"], three["batched_ns"], three["strategy"])


def main() -> None:
    parser = common_options("A batch of one beside KVM's ioctl; use `make bench`, which builds all it needs.", "one_slot.json")
    add_rounds(parser, 200)
    arguments = parser.parse_args()
    options = ["--other", "0", "--rounds", str(arguments.rounds)]
    (timed,) = reports(BENCH, [options], arguments.kernel)
    (counted,) = reports(BENCH, [["--vcpus", "0", *options]], arguments.kernel, counting=True)
    arguments.output.write_text(json.dumps({"timed": timed, "counted": counted}, indent=2) + "\n")
    show("One change of one memslot, one vCPU running, median of a call in us:", timed)
    print()
    show("The same without vCPUs, in thousands of instructions:", counted)


if __name__ == "__main__":
    main()
