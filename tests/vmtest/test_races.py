# SPDX-License-Identifier: GPL-2.0
"""Which of KCSAN's reports make a test fail; and that one does of which it must."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import races
from building import BUILD, make_kselftests, make_module
from kernel_log import COMPLAINT
from kernels import KERNELS
from races import Access, Frame, Races
from runner import VM, Outcome

RECORDED = Path(__file__).resolve().parent / "races"

# How often two threads get to meet, at most: once or twice has been enough.
ATTEMPTS = 20


def recorded(name: str) -> list[str]:
    """Lines of a kernel's log."""
    return [line for line in (RECORDED / name).read_text().splitlines() if not line.startswith("#")]


def races_of(lines: dict[str, str] | None = None) -> Races:
    """Judges by these lines of KVM's functions."""

    def source_lines(frame: Frame) -> list[str]:
        return [line] if (line := (lines or {}).get(frame.name)) else []

    return Races(source_lines)


def complaints(log: list[str]) -> list[str]:
    return [line for line in log if COMPLAINT.search(line)]


def sides_of(name: str) -> list[Access]:
    return races.accesses(recorded(name))


def test_race_of_the_module_counts() -> None:
    report = recorded("module.log")
    (told,) = complaints(races_of().judge(report))
    # All of it, for who has to mend it
    assert told.splitlines()[:-1] == report[1:-1]
    assert told.endswith("\nThe module's code takes part.")


def test_race_of_others_does_not_count() -> None:
    judge = races_of()
    assert judge.judge(recorded("kvm.log")) == []
    assert sum(judge.others.values()) == 1 and not judge.known


def test_interrupted_module_takes_no_part() -> None:
    report = recorded("interrupt.log")
    assert any(line.endswith(" [memslot]") for line in report)
    judge = races_of()
    assert judge.judge(report) == []
    assert sum(judge.others.values()) == 1


def test_known_race_does_not_count() -> None:
    judge = races_of({"direct_page_fault": "return sp && is_tdp_mmu_page(sp) && sp->root_count;"})
    assert judge.judge(recorded("known.log")) == []
    assert sum(judge.known.values()) == 1 and not judge.others


def test_sleeper_is_woken_by_the_kernel() -> None:
    judge = races_of()
    assert judge.judge(recorded("sleep.log")) == []
    assert sum(judge.known.values()) == 1 and not judge.others


def test_known_race_is_at_a_known_line() -> None:
    """Else a marked access of the module would hide all that KVM does plainly."""
    report = recorded("generation.log")
    for line, count in (("u64 gen = slots->generation;", 0), ("if (slot->base_gfn == gfn)", 1), ("", 1)):
        judge = races_of({"kvm_vcpu_gfn_to_memslot": line})
        assert len(complaints(judge.judge(report))) == count
        assert sum(judge.known.values()) == 1 - count


def test_unmarked_access_is_not_known() -> None:
    report = [line.replace("write (marked) to", "write to") for line in recorded("generation.log")]
    assert len(complaints(races_of({"kvm_vcpu_gfn_to_memslot": "u64 gen = slots->generation;"}).judge(report))) == 1


def test_both_sides_are_read() -> None:
    one, other = sides_of("module.log")
    assert (one.unknown, other.unknown) == (False, False)
    assert one.address == other.address
    assert one.stack and other.stack and one.is_of_module()
    assert not any(side.is_of_module() for side in sides_of("kvm.log"))


def test_field_that_the_module_writes_counts() -> None:
    """Though none of its code is to be seen."""
    report = recorded("kvm.log")
    reader = races.accessing(races.accesses(report)[-1])
    assert reader
    line = "virt/kvm/kvm_main.c:1: if (slots->generation != ghc->generation) {"
    (told,) = complaints(races_of({reader.name: line}).judge(report))
    assert told.splitlines()[-1].startswith("The module writes that field, too: ") and told.endswith(f" at {line}")


def test_variable_of_the_module_counts() -> None:
    report = recorded("kvm.log")
    judge = races_of()
    judge.image = range(address := races.accesses(report)[0].address, address + 8)
    (told,) = complaints(judge.judge(report))
    assert told.endswith("\nWhat is accessed is a variable of the module.")


@pytest.mark.parametrize("name", ["module.log", "kvm.log"])
def test_report_that_comes_in_two_pieces(name: str) -> None:
    """Where a command ends while the kernel prints, and whatever comes in between."""
    report, others = recorded(name), ["[    1.000000] memslot-kselftest: RUN a.b ...", "[    1.000001] WARNING: of another"]
    whole = complaints(races_of().judge(report))
    for cut in range(len(report)):
        judge = races_of()
        first = judge.judge(report[:cut])
        second = judge.judge([*others, *report[cut:]])
        assert [line for line in [*first, *second] if line in others] == others
        assert [line for line in complaints([*first, *second]) if line not in others] == whole


def test_report_without_an_end() -> None:
    report = recorded("module.log")
    judge = races_of()
    assert len(complaints(judge.judge([*report[:-1], *report]))) == 2


@pytest.mark.races
def test_deliberate_race_is_found(kernel_version: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count of all ioctls that nothing protects: a test that makes some at once would fail for it."""
    if not KERNELS[kernel_version].finds_races:
        pytest.skip("this kernel does not look for races: make test-debug builds one that does")

    changes = {
        "static long memslot_ioctl(": "unsigned long memslot_calls;\n\nstatic long memslot_ioctl(",
        "\tif (!ioctl)\n": "\tmemslot_calls++;\n\tif (!ioctl)\n",
    }
    changed = 0

    def with_a_race(source: str) -> str:
        nonlocal changed
        for old, new in changes.items():
            changed += source.count(old)
            source = source.replace(old, new)
        return source

    done = make_module(directory, kernel_version, edit=with_a_race)
    assert done.returncode == 0, done.stderr
    assert changed == len(changes)
    monkeypatch.setattr(VM, "module_path", directory / "build" / "memslot.ko")
    make_kselftests()
    query = shlex.join([str(BUILD / "kselftest/query"), "query.is_whole_while_another_thread_changes"])
    with VM(kernel_version, module=True) as machine:
        for _ in range(ATTEMPTS):
            result = machine.run("/bin/sh", "-c", f"{query} & {query} && wait $!")
            assert result.outcome is Outcome.OK, result.report()
            if result.complaints:
                break
        (told, *_) = machine.complaints
    assert told.splitlines()[0].endswith("BUG: KCSAN: data-race in memslot_ioctl [memslot] / memslot_ioctl [memslot]")
    assert "The module's code takes part." in told and "What is accessed is a variable of the module." in told
