#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Checks the models of the commit, and that each mutation of them is found; README.md has the tables of both."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
BUILD = FOLDER.parent.parent / "build" / "model"
# Above what any of the searches goes down.
DEPTH = 1000000
# Two of them beside each other fit in a small machine's memory.
MEGABYTES = 2000


class ModelError(Exception):
    """A table that is wrong, or a run that could not be made."""


@dataclass(frozen=True)
class Run:
    """A model, the macros that it is built with, and what must hold or, of a mutation, must not."""

    model: str
    scenario: tuple[str, ...]
    properties: tuple[str, ...]
    mutation: str = ""

    @property
    def name(self) -> str:
        return " ".join([self.model, *self.scenario, *([f"with {self.mutation}"] if self.mutation else [])])

    @property
    def macros(self) -> list[str]:
        return [*self.scenario, *([self.mutation] if self.mutation else [])]

    @property
    def folder(self) -> Path:
        return BUILD / "-".join([self.model, *self.macros])

    @property
    def is_about_time(self) -> bool:
        """Does it ask whether something happens at last, not whether something bad ever happens?"""
        return self.model == "locks"


@dataclass(frozen=True)
class Verdict:
    """What a search found."""

    run: Run
    violated: str
    states: int
    seconds: float
    complaint: str

    @property
    def line(self) -> str:
        told = self.complaint or (f"breaks {self.violated}" if self.violated else "holds")
        return f"{self.run.name}: {told} ({self.states} states, {self.seconds:.0f} s)"


def table(heading: str) -> list[list[str]]:
    """The rows of the table under a heading of README.md, without the head."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text, re.M | re.S)
    if not section:
        raise ModelError(f"README.md has no section '{heading}'")
    lines = [line for line in section[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def words(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`(\w+)`", cell))


def word(cell: str) -> str:
    (only,) = words(cell)
    return only


def models() -> list[Run]:
    """Each model in each scenario: all of its properties hold."""
    return [Run(word(model), words(scenario), words(properties)) for model, scenario, properties, _ in table("Models")]


def mutations() -> list[Run]:
    """Each mutation, with the one property that it breaks."""
    found = []
    for mutation, where, _, broken in table("Mutations"):
        model, *scenario = words(where)
        found.append(Run(model, tuple(scenario), words(broken), word(mutation)))
    return found


def mutations_in_sources() -> set[str]:
    """The macros that the models ask for, and neither they nor a scenario define."""
    asked: set[str] = set()
    defined = {"ONLY"}
    for path in FOLDER.glob("*.pml"):
        text = path.read_text(encoding="utf-8")
        for line in re.findall(r"^#(?:if|ifdef|ifndef|elif)\b(.*)$", text, re.M):
            asked.update(re.findall(r"\b[A-Z][A-Z0-9_]+\b", line))
        defined.update(re.findall(r"^#define (\w+)", text, re.M))
    for run in models():
        defined.update(run.scenario)
    return asked - defined


def _tool(run: Run, *command: str) -> str:
    done = subprocess.run(command, cwd=run.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise ModelError(f"{run.name}: {' '.join(command)}:\n{done.stdout}")
    return done.stdout


def _build(run: Run) -> None:
    """Makes the program that searches the run's states."""
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True)
    for path in FOLDER.glob("*.pml"):
        (run.folder / path.name).symlink_to(path)
    flags = [f"-DMEMLIM={MEGABYTES}"]
    macros = [f"-D{macro}" for macro in run.macros]
    if run.is_about_time:
        flags.append("-DNFAIR=3")
    else:
        flags.append("-DSAFETY")
    if run.mutation and not run.is_about_time:
        # The shortest way into trouble is the easiest to read, and no other property is asked for on it.
        flags.append("-DBFS")
        macros.append(f"-DONLY={run.properties[0]}")
    _tool(run, "spin", *macros, "-a", f"{run.model}.pml")
    _tool(run, "gcc", "-O2", "-w", *flags, "-o", "pan", "pan.c")


def _unreached(run: Run, said: str) -> list[str]:
    """Statements that no process came to, in none of the places where an inline has put them."""
    # What pan -d prints leaves merged statements out; the tables in its source have all of them.
    program = (run.folder / "pan.c").read_text(encoding="utf-8")
    names = dict(re.findall(r"#define _nstates(\d+)\t\d+\t?\s*/\* :?(\w+):? \*/", (run.folder / "pan.h").read_text(encoding="utf-8")))
    there: Counter[tuple[str, str]] = Counter()
    for number, process in names.items():
        lines = re.search(rf"^short src_ln{number} \[\] = \{{(.*?)\}};", program, re.M | re.S)
        files = re.search(rf"^S_F_MAP src_file{number} \[\] = \{{(.*?)\}};", program, re.M | re.S)
        if not lines or not files:
            continue
        at = [int(line) for line in re.findall(r"\d+", lines[1])]
        for file, first, last in re.findall(r'\{ "([^"]*)", (\d+), (\d+) \}', files[1]):
            there.update((process, f"{file}:{line}") for line in at[int(first) : int(last) + 1])
    missed: Counter[tuple[str, str]] = Counter()
    texts: dict[tuple[str, str], str] = {}
    process = ""
    for line in said.splitlines():
        if head := re.match(r"unreached in (?:proctype |claim )?(\w+)", line):
            process = head[1]
        elif (where := re.match(r'\t(\w+\.pml:\d+), state \d+, "(.*)"$', line)) and where[2] != "-end-":
            missed[process, where[1]] += 1
            texts[process, where[1]] = where[2]
    return [f"{key[0]} never comes to {key[1]}: {texts[key]}" for key, times in missed.items() if times >= there[key]]


def check(run: Run) -> Verdict:
    """Searches all states, or those up to the first bad one."""
    start = time.monotonic()
    _build(run)
    command = ["./pan", f"-m{DEPTH}"]
    if run.is_about_time:
        command += ["-a", "-f"]
    elif run.mutation:
        command.append("-E")
    said = _tool(run, *command)
    states = re.search(r"^\s*(\d+) states, stored", said, re.M)
    errors = re.search(r"errors: (\d+)", said)
    if not states or not errors or re.search(r"max search depth too small|out of memory|memory limit|aborted", said):
        raise ModelError(f"{run.name}: the search did not come to its end:\n{said}")
    violated = ""
    if int(errors[1]):
        trouble = re.search(r"^pan:1: (.*?) \(at depth", said, re.M)
        violated = run.properties[0] if run.mutation or run.is_about_time else trouble[1] if trouble else said
    complaint = ""
    if run.mutation and not violated:
        complaint = f"DOES NOT BREAK {run.properties[0]}, as README.md says"
    elif not run.mutation and violated:
        complaint = f"DOES NOT HOLD: {violated}"
    elif not run.mutation and run.properties != ("parking_succeeds",):
        # (that search ends where the vCPUs are parked)
        complaint = "; ".join(_unreached(run, said))
    return Verdict(run, violated, int(states[1]), time.monotonic() - start, complaint)


def check_tables() -> list[str]:
    """What is wrong with the tables."""
    wrong = []
    listed = {run.mutation for run in mutations()}
    wrong += [f"README.md lists {run.name} twice" for run, times in Counter([*models(), *mutations()]).items() if times > 1]
    wrong += [f"README.md does not list {name}" for name in sorted(mutations_in_sources() - listed)]
    wrong += [f"no model knows {name}" for name in sorted(listed - mutations_in_sources())]
    for run in models():
        text = "".join((FOLDER / f"{name}.pml").read_text(encoding="utf-8") for name in (run.model, "kvm"))
        asked = re.findall(r"\b(?:must\(|ltl )(\w+)", text)
        wrong += [f"{run.model} does not ask for {name}" for name in run.properties if name not in asked]
    held = {(run.model, run.scenario): run.properties for run in models()}
    for run in mutations():
        if len(run.properties) != 1 or run.properties[0] not in held.get((run.model, run.scenario), ()):
            wrong.append(f"{run.mutation} breaks {' '.join(run.properties)}, which {run.model} does not have there without it")
    return wrong


def show(run: Run) -> int:
    """Prints the way into trouble."""
    verdict = check(run)
    if verdict.violated:
        macros = [f"-D{macro}" for macro in run.macros]
        if not run.is_about_time:
            macros.append(f"-DONLY={run.properties[0]}")
        trail = _tool(run, "spin", *macros, "-t", "-p", "-g", f"{run.model}.pml")
        print("\n".join(line for line in trail.splitlines() if "<merge" not in line))
    print(verdict.line)
    return 1 if verdict.complaint else 0


def each(runs: Sequence[Run], tell: Callable[[str], None]) -> list[Verdict]:
    """Checks them, as many at once as there are processors, and tells how far it is."""
    verdicts = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for done in as_completed([pool.submit(check, run) for run in runs]):
            verdicts.append(done.result())
            tell(f"[{len(verdicts):2}/{len(runs)}] {verdicts[-1].line}")
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mutation", nargs="?", help="show the counterexample to this one, and check nothing else")
    wanted = parser.parse_args().mutation
    try:
        wrong = check_tables()
        if wrong:
            print("\n".join(wrong), file=sys.stderr)
            return 1
        if wanted:
            runs = [run for run in mutations() if run.mutation == wanted]
            if not runs:
                known = sorted({run.mutation for run in mutations()})
                raise ModelError(f"there is no mutation {wanted}; there are: {' '.join(known)}")
            return max(show(run) for run in runs)
        verdicts = each([*models(), *mutations()], lambda line: print(line, flush=True))
    except ModelError as error:
        print(f"check.py: {error}", file=sys.stderr)
        return 1
    bad = [verdict for verdict in verdicts if verdict.complaint]
    for verdict in bad:
        print(f"check.py: {verdict.line}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
