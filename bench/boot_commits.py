#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""What a VM's boot spends in changes of memslots, with each way that QEMU can make them: `make bench-qemu`.

In 2022 a list ioctl for KVM was measured by the time that QEMU needs to commit its memslots while a VM boots, with vCPUs
that do not leave the guest when they halt (--overcommit cpu-pm=on).  Here four QEMUs do that, in turn, in one test VM:
Debian 12's, which changes one slot after the other and so may die; Debian 13's, which keeps all vCPUs out of KVM
meanwhile; the same one with the patches of contrib/qemu; and Debian 12's under memslot-run.

Writes build/bench-qemu/: boots.csv and boots.json (each boot), summary.json, and plots.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from in_vm import BUILD, PROJECT, Json, aligned, common_options, pyplot, reports, save
from debian import DebianError
from options import at_least
from patched_qemu import patched_qemu

BOOT = PROJECT / "bench" / "boot_in_vm.py"
MEMSLOT_RUN = BUILD / "tools" / "memslot-run"
VCPUS = (1, 2, 4, 8, 16, 24)
# Milliseconds, by number of vCPUs.  Another machine's: an EPYC 7413 with Linux 5.19, in the thread of 2022
# (https://lore.kernel.org/kvm/20220909104506.738478-1-eesposit@redhat.com/).
PUBLISHED = {
    "list ioctl, 2022": dict(zip(VCPUS, (2.1, 2.5, 2.2, 2.4, 3.6, 12.5))),
    "pause, 2022": dict(zip(VCPUS, (2.2, 3.0, 3.1, 3.4, 12.0, 20.0))),
}
COUNTS = ("commits", "fenced", "parked", "calls", "grace_periods", "kicks", "eintr")
COLUMNS = ("vcpus", "variant", "round", "outcome", "seconds", "ms", "kernel_ms", "transactions", *COUNTS)


@dataclass(frozen=True)
class Variant:
    name: str
    told: str  # in tables and plots
    words: str  # its command, with its accelerator
    patched: bool = False

    def command(self, vcpus: int) -> list[str]:
        return ["--qemu", self.words, "--smp", str(vcpus), *["--patched"] * self.patched]


def stock_version() -> str:
    said = subprocess.run(["qemu-system-x86_64", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    match = re.search(r"version (\d+\.\d+)", said)
    assert match
    return match[1]


def variants() -> list[Variant]:
    """What this machine has; the stock QEMU of Debian 13 pauses, so the unprotected one is Debian 12's."""
    patched = " ".join(patched_qemu())
    version = stock_version()
    found = [
        Variant("pause", "QEMU 10.0, vCPUs paused", f"{patched} -accel kvm,memslot-batch=off", patched=True),
        Variant("batch", "QEMU 10.0, patched", f"{patched} -accel kvm,memslot-batch=on", patched=True),
    ]
    if int(version.partition(".")[0]) >= 8:
        print(f"bench-qemu: this machine's QEMU is {version}: 7.2, and 7.2 under memslot-run, take Debian 12")
        return found
    stock = "qemu-system-x86_64 -accel kvm"
    return [
        Variant("stock", f"QEMU {version}", stock),
        *found,
        Variant("memslot-run", f"QEMU {version}, memslot-run", f"{MEMSLOT_RUN} -- {stock}"),
    ]


def measure(chosen: Sequence[Variant], vcpus: Sequence[int], rounds: int, kernel: str) -> list[Json]:
    """All boots, in turn: another one is first in each round."""
    plan = [
        (number, count, variant)
        for number in range(rounds)
        for count in vcpus
        for variant in [*chosen[number % len(chosen) :], *chosen[: number % len(chosen)]]
    ]
    runs = [variant.command(count) for _, count, variant in plan]
    titles = [f"{variant.told}, {count} vCPUs" for _, count, variant in plan]
    return [
        {"vcpus": count, "variant": variant.name, "round": number, **report}
        for (number, count, variant), report in zip(plan, reports(BOOT, runs, kernel, titles=titles))
    ]


def statistic(times: Sequence[float]) -> Json:
    if not times:
        return {"mean_ms": None, "stdev_ms": None, "median_ms": None, "worst_ms": None}
    return {
        "mean_ms": round(statistics.mean(times), 3),
        "stdev_ms": round(statistics.stdev(times), 3) if len(times) > 1 else None,
        "median_ms": round(statistics.median(times), 3),
        "worst_ms": round(max(times), 3),
    }


def summarize(boots: Sequence[Json]) -> Json:
    """By number of vCPUs, then by variant: times and the counts' medians, of boots that came to their end."""
    summary: Json = {}
    for boot in boots:
        summary.setdefault(str(boot["vcpus"]), {}).setdefault(boot["variant"], []).append(boot)
    for by_variant in summary.values():
        for name, some in by_variant.items():
            finished = [boot for boot in some if boot["outcome"] == "finished"]
            counted = [{**boot, "ioctls": boot["calls"] + boot["commits"]} for boot in finished]
            by_variant[name] = {
                "survived": len(finished),
                "boots": len(some),
                **statistic([boot["ms"] for boot in finished]),
                **{count: statistics.median(boot[count] for boot in counted) if counted else None for count in (*COUNTS, "ioctls")},
            }
    return summary


def milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def table(summary: Json, chosen: Sequence[Variant]) -> str:
    heads = ("vCPUs", "QEMU", "survived", "mean ms", "stdev", "median", "worst", "ioctls", "grace p.", "kicks", "EINTR")
    rows: list[tuple[str, ...]] = [heads]
    for vcpus, by_variant in summary.items():
        for variant in chosen:
            found = by_variant[variant.name]
            times = [milliseconds(found[name]) for name in ("mean_ms", "stdev_ms", "median_ms", "worst_ms")]
            counts = ["-" if found[name] is None else f"{found[name]:g}" for name in ("ioctls", "grace_periods", "kicks", "eintr")]
            rows.append((vcpus, variant.told, f"{found['survived']} of {found['boots']}", *times, *counts))
        for told, times_of in PUBLISHED.items():
            if int(vcpus) in times_of:
                rows.append((vcpus, f"({told}: another machine)", "", f"{times_of[int(vcpus)]:.1f}", *[""] * 7))
    return aligned(rows, {1})


def plot(pyplot: Any, summary: Json, chosen: Sequence[Variant], output: Path) -> None:
    """Mean and standard deviation over the number of vCPUs, beside the published figures of another machine."""
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for variant in chosen:
        points = [(int(n), by[variant.name]) for n, by in summary.items() if by[variant.name]["mean_ms"] is not None]
        if points:
            axes.errorbar(
                [n for n, _ in points], [found["mean_ms"] for _, found in points],
                yerr=[found["stdev_ms"] or 0 for _, found in points], marker="o", capsize=3, label=variant.told,
            )  # fmt: skip
    for told, times in PUBLISHED.items():
        axes.plot(list(times), list(times.values()), linestyle=":", color="grey", marker="x", label=f"{told} (another machine)")
    axes.set_xlabel("vCPUs")
    axes.set_ylabel("milliseconds in memslot changes, per boot")
    axes.set_yscale("log")
    axes.set_xticks([int(n) for n in summary])
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    axes.set_title("SeaBIOS boots with --overcommit cpu-pm=on, in the test VM")
    save(figure, output / "boots")


def write(boots: Sequence[Json], summary: Json, output: Path) -> None:
    (output / "boots.json").write_text(json.dumps(boots, indent=1) + "\n")
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    with (output / "boots.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(boots)


def main() -> None:
    told = "What a boot spends in changes of memslots; use `make bench-qemu`, which builds all it needs."
    parser = common_options(told, "bench-qemu")
    add = parser.add_argument
    add("--boots", type=at_least(1), default=50, help="of each QEMU, for each number of vCPUs; default: %(default)s")
    add("--vcpus", type=at_least(1), nargs="+", default=VCPUS, help="default: %(default)s")
    arguments = parser.parse_args()
    drawing = pyplot()
    arguments.output.mkdir(parents=True, exist_ok=True)
    try:
        chosen = variants()
    except DebianError as error:
        sys.exit(f"bench-qemu: {error}")
    boots = measure(chosen, arguments.vcpus, arguments.boots, arguments.kernel)
    summary = summarize(boots)
    write(boots, summary, arguments.output)
    plot(drawing, summary, chosen, arguments.output)
    print(table(summary, chosen))
    print("Times are a whole boot's: in QEMU's memory transactions (10.0), or in calls of KVM and of the device (7.2).")
    print(f"{arguments.output} has each boot, and a plot.")


if __name__ == "__main__":
    main()
