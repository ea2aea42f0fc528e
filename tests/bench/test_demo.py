# SPDX-License-Identifier: GPL-2.0
"""`make demo` itself: its table is complete, and its exit status is about what must not happen, not about speed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from debian import PROJECT
from runner import DEFAULT_KERNEL, Outcome, Result

sys.path.insert(0, str(PROJECT / "bench"))

import demo  # noqa: E402

Json = dict[str, Any]

RATIOS = {"three_changes_1_vcpu", "three_changes_1_vcpu_tiny_guest", "delete_512_1_vcpu", "create_512_1_vcpu"}
ROWS = [
    "boots",
    "died with a KVM internal error",
    "reached the end of the firmware",
    *(f"{n} vCPU{'s' if n > 1 else ''}: holes" for n in (1, 2, 4, 8)),
    "three changes, 64 MiB guest",
    "three changes, 1 MiB guest",
    "delete 512 slots",
    "create 512 slots",
]


def table(said: str) -> str:
    """From its first line to its last; all have the same width."""
    lines = said[said.index("┌") : said.rindex("┘") + 1].splitlines()
    assert {len(line) for line in lines} == {79}
    for row in ROWS:
        assert any(line.startswith(f"│ {row}") for line in lines), row
    return "\n".join(lines)


def test_demo(tmp_path: Path) -> None:
    """All of it, with few boots and samples, in a VM."""
    output = tmp_path / "demo.json"
    done = subprocess.run(
        [PROJECT / "bench" / "demo.py", "--quick", "--output", output], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown = table(done.stdout)
    report: Json = json.loads(output.read_text())
    assert report["not_measured"] == {} and "not measured" not in shown, done.stdout + done.stderr
    assert report["stock"]["boots"] == report["stock"]["died"] + report["stock"]["finished"] > 0
    assert report["memslot"]["boots"] == report["memslot"]["finished"] > 0
    assert report["memslot"]["died"] == 0 < report["memslot"]["commits"]
    for mode in ("one_by_one", "batched"):
        assert report["guests"][mode].keys() == {"1", "2", "4", "8"}
        assert all(seen["transactions"] >= 4 * 5 for seen in report["guests"][mode].values())
    assert sum(seen["holes"] for seen in report["guests"]["one_by_one"].values()) > 0
    assert all(seen["holes"] == seen["torn"] == seen["errors"] == 0 for seen in report["guests"]["batched"].values())
    assert report["ratios"].keys() == report["nanoseconds"].keys() == RATIOS
    assert all(ns["samples"] > 0 for ns in report["nanoseconds"].values())


# What the programs in the VM say when all is well
SEEN = {"holes": 0, "torn": 0, "errors": 0, "transactions": 20, "fenced": 20, "parked": 0}
COUNTED = {"changes": 78, "commits": 12, "fenced": 8, "parked": 4, "failed": 0, "lost": 0, "ms_in_commits": 1.5}
KINDS = ("split", "merge", "create 512", "delete 512")
TIMED = {way: {"ns": dict.fromkeys(KINDS, [ns] * 8)} for way, ns in {"kvm": 4e6, "fence": 1e6}.items()}
WELL = {
    "boots, stock": [{"outcome": "died", "seconds": 1}],
    "boots, memslot-run": [{"outcome": "finished", "seconds": 1, "memslot": COUNTED}] * 2,
    "churn, one-by-one": [SEEN | {"holes": 7}],
    "churn, batched": [SEEN],
    "guest_bench": [{"ways": TIMED}],
}


class FakeVM:
    """In place of a test VM: what its programs say, and how they end if not well."""

    says: dict[str, list[Json]]
    ends: dict[str, tuple[Outcome, str, list[str]]]
    cpus = 1000

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> FakeVM:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self) -> None:
        pass

    def run(
        self, *command: str, timeout: float = 0, on_stdout: Callable[[bytes], None] | None = None, **_: object
    ) -> Result:
        name = Path(command[0]).stem
        if "--version" in command:
            said = "QEMU emulator version 7.2.0 (Debian)\n"
            return Result(" ".join(command), Outcome.OK, 0, "ok", said, "", said, [], [], "", timeout)
        if name == "boots":
            name += ", memslot-run" if "--memslot-run" in command else ", stock"
        elif name == "churn":
            name += f", {command[command.index('--mode') + 1]}"
        outcome, reason, complaints = self.ends.get(name, (Outcome.OK, "ok", []))
        said = "".join(json.dumps(line) + "\n" for line in self.says[name])
        if on_stdout:
            # In pieces as they happen to come
            on_stdout(said[:10].encode())
            on_stdout(said[10:].encode())
        status = {Outcome.OK: 0, Outcome.FAILED: 1}.get(outcome)
        return Result(" ".join(command), outcome, status, reason, said, "", said, complaints, complaints, "", timeout)


@pytest.fixture
def run_demo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, Json]]:
    """Runs it with programs that say something else, or end in another way; returns status, output and JSON."""

    def run(
        says: dict[str, list[Json]] | None = None, ends: dict[str, tuple[Outcome, str, list[str]]] | None = None
    ) -> tuple[int, str, Json]:
        monkeypatch.setattr(FakeVM, "says", WELL | (says or {}), raising=False)
        monkeypatch.setattr(FakeVM, "ends", ends or {}, raising=False)
        monkeypatch.setattr(demo, "VM", FakeVM)
        output = tmp_path / "demo.json"
        status = demo.main(["--quick", "--kernel", DEFAULT_KERNEL, "--output", str(output)])
        said = capsys.readouterr().out
        table(said)
        return status, said, json.loads(output.read_text())

    return run


def test_all_is_well(run_demo: Callable[..., tuple[int, str, Json]]) -> None:
    status, said, report = run_demo()
    assert status == 0 and "FAILED" not in said and "not measured" not in said
    assert report["not_measured"] == {}
    assert report["memslot"] == COUNTED | {"boots": 2, "died": 0, "finished": 2, "stuck": 0} | {
        name: 2 * value for name, value in COUNTED.items()
    }
    assert "three changes, 64 MiB guest: 4.0x ± 0 %" in said


@pytest.mark.parametrize(
    ("says", "failure"),
    [
        ({"boots, memslot-run": [{"outcome": "died", "memslot": COUNTED}]}, "1 boots with the module did not reach"),
        ({"boots, memslot-run": [{"outcome": "stuck", "memslot": COUNTED}]}, "1 boots with the module did not reach"),
        ({"boots, memslot-run": [{"outcome": "finished", "memslot": COUNTED | {"lost": 1}}]}, "lost 1"),
        ({"churn, batched": [SEEN | {"holes": 1}]}, "guests with 4 vCPUs, batched: {'holes': 1}"),
        ({"churn, batched": [SEEN | {"torn": 1}]}, "guests with 4 vCPUs, batched: {'torn': 1}"),
        ({"churn, batched": [SEEN | {"errors": 1}]}, "guests with 4 vCPUs, batched: {'errors': 1}"),
    ],
    ids=["died", "stuck", "lost", "hole", "torn", "error"],
)
def test_what_must_not_happen(
    run_demo: Callable[..., tuple[int, str, Json]], says: dict[str, list[Json]], failure: str
) -> None:
    status, said, _ = run_demo(says)
    assert status == 1
    assert failure in said[said.index("demo: FAILED: ") :]


@pytest.mark.parametrize("program", WELL)
def test_too_slow_is_no_failure(run_demo: Callable[..., tuple[int, str, Json]], program: str) -> None:
    """A line of the table instead; boots that there were count."""
    says: dict[str, list[Json]] = {} if program.startswith("boots") else {program: []}
    status, said, report = run_demo(says, {program: (Outcome.TIMED_OUT, "timed out", [])})
    assert status == 0 and "FAILED" not in said
    assert report["not_measured"]
    assert all(why.startswith("timed out, after ") for why in report["not_measured"].values())
    for title in report["not_measured"]:
        assert f"│ not measured: {title}: timed out, after " in said
    assert report["memslot"]["boots"] == 2 and report["stock"]["boots"] == 1


BAD_ENDS = {
    "lost": (Outcome.LOST, "the VM hung", []),
    "warning": (Outcome.OK, "ok", ["BUG: something"]),
    "cannot be killed": (Outcome.TIMED_OUT, "timed out, and it cannot be killed", []),
    "error": (Outcome.FAILED, "exit status 1", []),
}


@pytest.mark.parametrize("program", WELL)
@pytest.mark.parametrize("end", BAD_ENDS)
def test_bad_ends_are_failures_with_the_module(
    run_demo: Callable[..., tuple[int, str, Json]], program: str, end: str
) -> None:
    """What KVM by itself does to a VM is its own."""
    status, said, report = run_demo(None, {program: BAD_ENDS[end]})
    assert report["not_measured"] and "│ not measured: " in said
    with_module = program in ("boots, memslot-run", "churn, batched", "guest_bench")
    assert status == (1 if with_module else 0)
    assert ("demo: FAILED: " in said) == with_module
