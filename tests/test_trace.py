# SPDX-License-Identifier: GPL-2.0
"""The tracepoints: what a VMM author sees of a commit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from runner import Result

BUILD = Path(__file__).resolve().parent.parent / "build"
CHURN = BUILD / "guests" / "churn"
BATCH = BUILD / "kselftest" / "batch"

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
FENCED = "plan prepare build fence zap publish wait updated unfence mirror finish".split()
# The first look finds that parking is needed; what was planned is still good then.
PARKED = ["plan", "park", *FENCED[1:]]


@pytest.mark.every_kernel
@pytest.mark.parametrize(("options", "steps"), [([], FENCED), (["--park"], PARKED)], ids=["fenced", "parked"])
def test_every_step_of_a_commit_is_traced(run_in_vm: Callable[..., Result], options: list[str], steps: list[str]) -> None:
    churn = [str(CHURN), "--vcpus", "1", "--transactions", "3", "--scenario", "replace", *options]
    trace = run_in_vm("/bin/sh", "-c", TRACED, "sh", *churn).stdout
    commits: list[list[tuple[str, str]]] = []
    for kind, text in EVENT.findall(trace):
        if kind == "start":
            commits.append([])
        commits[-1].append((kind, text))
    replaces = [commit for commit in commits if "remapped 0 " not in commit[-1][1]]
    assert len(replaces) >= 3
    for commit in replaces:
        assert commit[0][0] == "start"
        assert re.fullmatch(r"vm \d+ entries [1-9]\d* flags 0x[02]", commit[0][1])
        assert [text.split()[-2] for kind, text in commit if kind == "step"] == steps
        assert commit[-1][0] == "end"
        assert "err 0 " in commit[-1][1] and "grace periods 1 " in commit[-1][1]


# A probe tells who calls it, and of which module that is.
GRACE_PERIOD = "synchronize_srcu_expedited"
COUNTED = f"""
set -e
cd /sys/kernel/tracing
echo 0 > events/enable
echo > trace
echo 65536 > buffer_size_kb
echo 'p:memslot_test/wait {GRACE_PERIOD} caller=+0(%sp):symbol' > kprobe_events
trap 'echo 0 > events/enable; echo > kprobe_events' EXIT
echo 1 > events/memslot_test/wait/enable
echo 1 > events/memslot/memslot_commit_end/enable
"$@" > /dev/null
sed -n 's/.* caller=.*\\[memslot\\]$/wait/p; s/.*memslot_commit_end: .* grace periods \\([0-9]*\\) .*/\\1/p' trace
"""


@pytest.mark.every_kernel
def test_reported_grace_periods_are_the_real_ones(run_in_vm: Callable[..., Result]) -> None:
    """Of all batches of the kselftest `batch`, with up to 512 entries in one or two address spaces."""
    said = run_in_vm("/bin/sh", "-c", COUNTED, "sh", BATCH).stdout.split()
    reported = [int(word) for word in said if word != "wait"]
    assert set(reported) == {0, 1}
    assert said.count("wait") == sum(reported) > 100
