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
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "tests" / "vm"))

from runner import VM, Outcome, VMError  # noqa: E402

BENCH = PROJECT / "build" / "guests" / "slot_bench"
WORK = {
    "create_one": "create",
    "move_one": "move",
    "log_one": "log dirty pages",
    "unlog_one": "stop logging",
    "delete_one": "delete",
}


def main() -> int:
    parser = argparse.ArgumentParser(description="A batch of one beside KVM's ioctl; use `make bench`, which builds all it needs.")
    parser.add_argument("--rounds", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=PROJECT / "build" / "one_slot.json", help="default: build/one_slot.json")
    arguments = parser.parse_args()
    if not BENCH.exists():
        print(f"bench: {BENCH} is not built yet; run `make bench`")
        return 2
    try:
        with VM(module=True) as vm:
            result = vm.run(BENCH, "--other", "0", "--rounds", str(arguments.rounds), timeout=600)
    except VMError as error:
        print(f"bench: {error}")
        return 1
    if result.outcome is not Outcome.OK or result.complaints:
        print(result.report())
        return 1
    report = json.loads(result.stdout)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")

    print("One change of one memslot, median of a call:")
    print(f"  {'':16} {'KVM':>10} {'memslot':>10}   KVM / memslot   strategy")
    for key, title in WORK.items():
        work = report[key]
        kvm, ours = work["one_by_one_ns"] / 1e3, work["batched_ns"] / 1e3
        print(f"  {title:16} {kvm:7.0f} us {ours:7.0f} us   {kvm / ours:13.2f}   {work['strategy']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
