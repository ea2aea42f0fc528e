#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""What a batch of one costs, beside KVM's own ioctl: `make bench`.

In a test VM, with one vCPU running: a slot is created, moved, logged, no longer
logged and deleted, by KVM_SET_USER_MEMORY_REGION and by a commit of one entry,
in turn in one run.  Writes build/one_slot.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from in_vm import BUILD, reports

BENCH = BUILD / "guests" / "slot_bench"
WORK = {
    "create_one": "create",
    "move_one": "move",
    "log_one": "log dirty pages",
    "unlog_one": "stop logging",
    "delete_one": "delete",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="A batch of one beside KVM's ioctl; use `make bench`, which builds all it needs.")
    parser.add_argument("--rounds", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=BUILD / "one_slot.json", help="default: build/one_slot.json")
    arguments = parser.parse_args()
    (report,) = reports(BENCH, [["--other", "0", "--rounds", str(arguments.rounds)]])
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")

    print("One change of one memslot, median of a call:")
    print(f"  {'':16} {'KVM':>10} {'memslot':>10}   KVM / memslot   strategy")
    sums = [0.0, 0.0]
    for key, title in WORK.items():
        work = report[key]
        kvm, ours = work["one_by_one_ns"] / 1e3, work["batched_ns"] / 1e3
        sums = [sums[0] + kvm, sums[1] + ours]
        print(f"  {title:16} {kvm:7.0f} us {ours:7.0f} us   {kvm / ours:13.2f}   {work['strategy']}")
    print(f"  {'one of each':16} {sums[0]:7.0f} us {sums[1]:7.0f} us   {sums[0] / sums[1]:13.2f}")


if __name__ == "__main__":
    main()
