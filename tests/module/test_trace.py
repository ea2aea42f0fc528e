# SPDX-License-Identifier: GPL-2.0
"""The tracepoints: what a VMM author sees of a commit."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from building import BUILD
from debian import PROJECT
from runner import Result

# memslotctl reads the text, with tables of the names
TRACE_READER = PROJECT / "tools" / "memslotctl" / "trace.cpp"
TABLES = {"reason": "reasons", "strategy": "strategies", "park_cause": "park_causes"}
CHURN = BUILD / "guests" / "churn"
BATCH = BUILD / "kselftest" / "batch"
RUNNING = BUILD / "kselftest" / "running"

TRACED = """
set -e
cd /sys/kernel/tracing
echo 0 > events/enable
echo > trace
echo 1 > events/memslot/enable
trap 'echo 0 > events/memslot/enable' EXIT
"$@" > /dev/null
cat trace
"""
EVENT = re.compile(r"memslot_commit_(start|step|end): (.*)")
FENCED = "plan prepare build fence zap publish wait unfence mirror update finish".split()
UNCOVERING = "plan prepare build fence zap publish wait unfence mirror republish rewait update finish".split()
# The first look finds that parking is needed; what was planned is still good then.
PARKED = ["plan", "park", *FENCED[1:]]


@pytest.mark.every_kernel
@pytest.mark.any_vendor
@pytest.mark.parametrize(
    ("scenario", "options", "steps"),
    [
        ("replace", [], FENCED),
        ("replace", ["--park"], PARKED),
        ("uncover", [], UNCOVERING),
        ("uncover", ["--park"], PARKED),
    ],
    ids=["fenced", "parked", "uncovering", "uncovering, parked"],
)
def test_every_step_of_a_commit_is_traced(
    run_in_vm: Callable[..., Result], scenario: str, options: list[str], steps: list[str]
) -> None:
    churn = [str(CHURN), "--vcpus", "1", "--transactions", "3", "--scenario", scenario, *options]
    trace = run_in_vm("/bin/sh", "-c", TRACED, "sh", *churn).stdout
    commits: list[list[tuple[str, str]]] = []
    for kind, text in EVENT.findall(trace):
        if kind == "start":
            commits.append([])
        commits[-1].append((kind, text))
    replaces = [commit for commit in commits if " remapped=0 " not in commit[-1][1]]
    assert len(replaces) >= 3
    for commit in replaces:
        assert commit[0][0] == "start"
        assert re.fullmatch(r"vm=\d+ entries=[1-9]\d* flags=0x[02]", commit[0][1])
        assert [text.split(" step=")[1] for kind, text in commit if kind == "step"] == steps
        assert commit[-1][0] == "end"
        told = dict(pair.split("=") for pair in commit[-1][1].split())
        assert told["err"] == "0" and told["reason"] == "NONE"
        assert told["strategy"] == ("PARK" if "park" in steps else "FENCE")
        assert told["cause"] == ("REQUESTED" if "park" in steps else "NOT")
        assert told["grace_periods"] == ("2" if "rewait" in steps else "1")
        assert told["tombstones"] in (("1", "3") if "rewait" in steps else ("0",))
        assert told["late_root"] == "0"


def test_readme_names_the_steps() -> None:
    """In their order; parking comes before, and only in some commits."""
    header = (PROJECT / "module" / "step.h").read_text()
    steps = re.findall(r"\bSTEP_(\w+), (\w+)\)", header)
    assert len(steps) > 10 and all(constant.lower() == name for constant, name in steps)
    rows = re.findall(r"^\| (\d+) \| ((?:`\w+`(?:, )?)+) \|", (PROJECT / "README.md").read_text(), re.M)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert ["park", *(name for _, names in rows for name in re.findall(r"\w+", names))] == [name for _, name in steps]


# An enum of the interface, and what the names of its constants begin with
ENUMS = {
    "reason": ("memslot_reason", "MEMSLOT_REASON_"),
    "strategy": ("memslot_strategy", "MEMSLOT_STRATEGY_"),
    "park_cause": ("memslot_park_cause", "MEMSLOT_PARK_"),
}


@pytest.mark.every_kernel
@pytest.mark.any_vendor
def test_events_name_every_constant(run_in_vm: Callable[..., Result]) -> None:
    """By its number, too: programs read the format of an event and its fields, not the text."""
    header = (PROJECT / "uapi" / "linux" / "memslot.h").read_text()
    told = run_in_vm("cat", "/sys/kernel/tracing/events/memslot/memslot_commit_end/format").stdout
    for field, (enum, prefix) in ENUMS.items():
        match = re.search(rf"enum {enum} \{{(.*?)\}};", header, re.S)
        assert match
        names = re.findall(rf"{prefix}(\w+)", match[1])
        symbols = re.search(rf"__print_symbolic\(REC->{field}, (.*?)\)", told)
        assert symbols, told
        assert re.findall(r'\{ *(\w+), *"(\w+)" *\}', symbols[1]) == [(str(number), name) for number, name in enumerate(names)]
        listed = re.search(rf"> {TABLES[field]}\{{(.*?)\}};", TRACE_READER.read_text(), re.S)
        assert listed and re.findall(r'"(\w+)"', listed[1]) == names


TEST_ONLY = 1  # MEMSLOT_COMMIT_TEST_ONLY

# A probe of SRCU tells who calls it, and of which module that is.
COUNTED = """
set -e
cd /sys/kernel/tracing
echo 0 > events/enable
echo > trace
echo 65536 > buffer_size_kb
echo 'p:memslot_test/wait memslot:readers_wait' > kprobe_events
echo 'p:memslot_test/ask synchronize_srcu_expedited caller=+0(%sp):symbol' >> kprobe_events
trap 'echo 0 > events/enable; echo > kprobe_events' EXIT
echo 1 > events/memslot_test/enable
echo 1 > events/memslot/memslot_commit_start/enable
echo 1 > events/memslot/memslot_commit_end/enable
"$@" > /dev/null
cat trace
"""


def count_grace_periods(run_in_vm: Callable[..., Result], *command: str) -> tuple[int, int, list[int]]:
    """How many there were, for how many SRCU was asked, and what the commits reported."""
    waits, asked, reported, dry = 0, 0, [], False
    for line in run_in_vm("/bin/sh", "-c", COUNTED, "sh", *command).stdout.splitlines():
        if " wait: " in line:
            waits += 1
        elif re.search(r" ask: .* caller=.*\[memslot\]$", line):
            asked += 1
        elif start := re.search(r"memslot_commit_start: .* flags=0x([0-9a-f]+)", line):
            dry = bool(int(start[1], 16) & TEST_ONLY)
        elif end := re.search(r"memslot_commit_end: .* grace_periods=(\d+) ", line):
            # with TEST_ONLY: how many it would be
            if not dry:
                reported.append(int(end[1]))
    return waits, asked, reported


@pytest.mark.every_kernel
@pytest.mark.any_vendor
def test_reported_grace_periods_are_the_real_ones(run_in_vm: Callable[..., Result]) -> None:
    """Of all batches of the kselftest `batch`, with up to 512 entries in one or two address spaces."""
    waits, asked, reported = count_grace_periods(run_in_vm, str(BATCH))
    assert set(reported) == {0, 1, 2}
    assert waits == sum(reported) > 100
    # No vCPU runs during a commit there
    assert asked == 0


@pytest.mark.every_kernel
@pytest.mark.any_vendor
def test_srcu_is_asked_where_somebody_reads(run_in_vm: Callable[..., Result]) -> None:
    """A vCPU sleeps in a page fault, for memory that userfaultfd provides as soon as the commit is seen to wait."""
    waits, asked, reported = count_grace_periods(run_in_vm, str(RUNNING), "running.fenced_commit_waits_for_a_sleeping_vcpu")
    assert asked == waits == sum(reported) == 1
