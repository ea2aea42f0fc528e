# SPDX-License-Identifier: GPL-2.0
"""What `make bench` draws: a plot for each scenario, and one of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures import WAYS, Run, median
from in_vm import save

# What the plot of all scenarios shows, and how
SHOWN = {"kvm": "tab:red", "pause": "tab:orange", "fence": "tab:blue"}


def plot_scenario(pyplot: Any, title: str, runs: Sequence[Run], output: Path) -> None:
    """Times, speed and gaps of witnesses by the number of vCPUs; and how often there were which gaps."""
    figure, ((times, speed), (gaps, often)) = pyplot.subplots(2, 2, figsize=(12, 8))
    kind = list(runs[0].figures["fence"]["times"])[-1]
    counts = [run.vcpus for run in runs]
    shown = runs[min(2, len(runs) - 1)]
    for way, told in WAYS.items():
        found = [run.figures.get(way, {}) for run in runs]
        if not all("times" in each for each in found):
            continue
        times.plot(counts, [(median(run, way, kind) or 0) / 1e6 for run in runs], marker="o", label=told)
        speed.plot(counts, [each["witness_share"] for each in found], marker="o", label=told)
        gaps.plot(counts, [each["witness_gap"]["median_ns"] / 1e6 for each in found], marker="o", label=told)
        bars = shown.figures[way]["histogram"]
        often.plot([ns / 1e6 for ns, _ in bars], [count for _, count in bars], marker=".", label=told)
    gaps.plot(counts, [run.figures["fence"]["undisturbed_gap"]["median_ns"] / 1e6 for run in runs], "k:", label="undisturbed")
    bars = shown.figures["fence"]["undisturbed_histogram"]
    often.plot([ns / 1e6 for ns, _ in bars], [count for _, count in bars], "k:", label="undisturbed")
    for axes, told, scale in (
        (times, f"{kind}: median, ms", "log"), (speed, "speed of witnesses, as a share of undisturbed speed", "linear"),
        (gaps, "longest gap of a witness in a block: median, ms", "log"),
    ):  # fmt: skip
        axes.set_title(told, fontsize="medium")
        axes.set_yscale(scale)
        axes.set_xlabel("vCPUs")
        axes.set_xticks(counts)
        axes.grid(alpha=0.3)
    often.set_title(f"gaps of witnesses, {shown.vcpus} vCPUs: how many from so many ms to twice as many", fontsize="medium")
    often.set_xscale("log")
    often.set_yscale("log")
    often.set_xlabel("ms")
    often.grid(alpha=0.3)
    times.legend(fontsize="small")
    figure.suptitle(title)
    save(figure, output / runs[0].name.replace(", ", "-").replace(" ", "-"))
    pyplot.close(figure)


def plot_overview(pyplot: Any, counted: Sequence[Run], timed: Sequence[Run], output: Path) -> None:
    """The speed of a witness, by instructions, in each scenario; and the time of a split by the number of vCPUs."""
    figure, (speed, times) = pyplot.subplots(1, 2, figsize=(12, 4.5), width_ratios=(3, 2))
    alone = [run for run in counted if run.vcpus == 1]
    splits = [run for run in timed if run.name == "split-merge"]
    width = 0.8 / len(SHOWN)
    for number, (way, color) in enumerate(SHOWN.items()):
        # What was not measured has no bar
        shares = [run.figures.get(way, {}).get("witness_share") or 0 for run in alone]
        bars = speed.bar([n + number * width for n in range(len(alone))], shares, width, color=color, label=WAYS[way])
        speed.bar_label(bars, [f"{share:.2f}" if share else "" for share in shares], fontsize="xx-small", rotation=90, padding=2)
        found = [(run.vcpus, median(run, way, "split")) for run in splits]
        times.plot([vcpus for vcpus, _ in found], [(ns or 0) / 1e6 for _, ns in found], marker="o", color=color, label=WAYS[way])
    speed.set_xticks([n + 0.4 - width / 2 for n in range(len(alone))], [run.name for run in alone], fontsize="small")
    speed.set_ylim(0, 1.25)
    speed.set_title("speed of a vCPU that looks on, as a share of undisturbed speed", fontsize="medium")
    speed.legend(fontsize="small", loc="upper center", ncols=len(SHOWN))
    times.set_title("split-merge: milliseconds for a split, median", fontsize="medium")
    times.set_yscale("log")
    times.yaxis.set_major_formatter("{x:g}")
    times.set_xlabel("vCPUs")
    times.set_xticks([run.vcpus for run in splits])
    times.grid(alpha=0.3)
    save(figure, output / "overview")
    pyplot.close(figure)
