#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""The static checks: make check runs them all, and none may find anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kernels
from debian import PROJECT, DebianError

BUILD = PROJECT / "build"
KERNEL = next(iter(kernels.KERNELS))
WORKERS = len(os.sched_getaffinity(0))


class Tree:
    """The project's files, or those of a changed copy of it."""

    def __init__(self, root: Path = PROJECT, names: Iterable[str] | None = None) -> None:
        self.root = root
        self.names = sorted(names) if names is not None else self._listed()

    def _listed(self) -> list[str]:
        """Tracked, or new and not ignored."""
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        listing = subprocess.run(command, cwd=self.root, check=True, stdout=subprocess.PIPE, text=True).stdout
        return sorted(name for name in listing.split("\0") if name and (self.root / name).is_file())

    def matching(self, pattern: str) -> list[str]:
        return [name for name in self.names if re.fullmatch(pattern, name)]

    def with_first_line(self, pattern: str) -> list[str]:
        def first_line(name: str) -> str:
            with open(self.root / name, "rb") as file:
                return file.readline().decode(errors="replace")

        return [name for name in self.names if re.match(pattern, first_line(name))]


def findings(tree: Tree, *command: str | Path, env: dict[str, str] | None = None, words: str = "") -> str:
    """What a tool says; nothing if it is content, and no line of it has these words."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=tree.root,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if not done.returncode and not (words and re.search(words, done.stdout, re.M)):
        return ""
    return done.stdout or f"{command[0]}: exit status {done.returncode}\n"


def each(work: Callable[[str], str], names: Sequence[str]) -> str:
    """The findings in each file, which are looked for side by side."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return "".join(pool.map(work, names))


def checkpatch(tree: Tree) -> str:
    harness = tree.matching(r"tests/kselftest/.*\.[ch]")
    files = [name for name in tree.matching(r".*\.[ch]") if name not in harness]
    source = kernels.linux_source(KERNEL)
    options = ["--no-tree", f"--root={source}", "--strict", "--terse", "--show-types", "--no-summary"]
    # FIXTURE_DATA(x) *y is no multiplication, and an ASSERT that logs is more than one statement
    ignored = ["--ignore", "SPACING,BRACES"]

    def look(*arguments: str) -> str:
        return findings(tree, "perl", source / "scripts" / "checkpatch.pl", *options, *arguments)

    return (look("--file", *files) if files else "") + (look(*ignored, "--file", *harness) if harness else "")


def clang_format(tree: Tree) -> str:
    files = tree.matching(r".*\.[ch]pp")
    return findings(tree, "clang-format", "--dry-run", "-Werror", *files) if files else ""


# What clang's analyzer is told of tests and benchmarks: with its default of 225,000 states of a function it spends more time
# on a few long test functions than on everything else.
SHORTER_PATHS = tuple(f"--extra-arg={word}" for word in ("-Xclang", "-analyzer-config", "-Xclang", "max-nodes=30000"))


def clang_tidy(tree: Tree) -> str:
    def look(name: str) -> str:
        path = Path(name)
        folders = ["userlib", "uapi", "module", str(path.parent), str(path.parent.parent), "tests/guests", "tests/unit"]
        flags = ["-std=c++20", "-Wall", "-Wextra", '-DMEMSLOT_VERSION="0"', *(f"-I{folder}" for folder in folders)]
        # what is for builds without exceptions refuses any other
        if path.stem == "no_exceptions":
            flags.append("-fno-exceptions")
        shorter = SHORTER_PATHS if {"tests", "bench"} & set(path.parts) else ()
        return findings(tree, "clang-tidy", "--quiet", *shorter, name, "--", *flags)

    return each(look, tree.matching(r".*\.cpp"))


def shellcheck(tree: Tree) -> str:
    files = tree.with_first_line(r"#!/bin/(ba)?sh\b")
    return findings(tree, "shellcheck", *files) if files else ""


def mypy(tree: Tree) -> str:
    files = tree.with_first_line(r"#!/usr/bin/python3$")
    files += [name for name in tree.matching(r".*\.py") if name not in files]
    options = ["--strict", "--cache-dir", str(BUILD / "mypy")]
    return findings(tree, "mypy", *options, *files, env={"MYPYPATH": "scripts:vmtest"}) if files else ""


def codespell(tree: Tree) -> str:
    return findings(tree, "codespell", "-L", "filp,fro,inout,nd", *tree.names)


def _module(tree: Tree, *arguments: str) -> str:
    """Builds the objects of the module with all of gcc's warnings, and what else make is told."""
    build = (BUILD / "check" if tree.root == PROJECT else tree.root / "build") / "module"
    objects = [str(Path(name).with_suffix(".o").relative_to("module")) for name in tree.matching(r"module/.*\.c")]
    if not objects:
        return ""
    # Kbuild writes beside the sources
    build.mkdir(parents=True, exist_ok=True)
    for path in (tree.root / "module").rglob("*"):
        link = build / path.relative_to(tree.root / "module")
        link.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in {".c", ".h", ".mk"} or path.name == "Kbuild":
            link.unlink(missing_ok=True)
            link.symlink_to(path)
    for shared in ("uapi", "versions.mk", "dkms.conf"):
        link = build.parent / shared
        link.unlink(missing_ok=True)
        link.symlink_to(tree.root / shared)
    make = ["make", "-C", str(kernels.kernel(KERNEL).headers), f"-j{WORKERS}", f"M={build}", "W=1", "KCFLAGS=-Werror"]
    return findings(tree, *make, *arguments, *objects, words=r"\b(warning|error):")


def sparse(tree: Tree) -> str:
    return _module(tree, "C=2", "CF=-Wsparse-error")


def analyzer(tree: Tree) -> str:
    # without the flags that are sparse's own
    said = _module(tree, "C=2", f"CHECK={PROJECT}/scripts/analyze", "CHECKFLAGS=")
    # plan.c is a program for the host, too, and other code in it for that
    for name in tree.matching(r"module/plan\.c"):
        said += findings(tree, PROJECT / "scripts" / "analyze", "-std=gnu11", "-Iuapi", "-Imodule", name)
    return said


def coccinelle(tree: Tree) -> str:
    """The kernel's own rules, but for those that take an OCaml compiler."""
    files = tree.matching(r"module/.*\.c")
    rules = (kernels.linux_source(KERNEL) / "scripts" / "coccinelle").rglob("*.cocci")

    def look(name: str) -> str:
        rule = Path(name).read_text()
        if re.search(r"^@ *(script|initialize|finalize):ocaml", rule, re.M):
            return ""
        options = [word for line in re.findall(r"^// Options:(.*)$", rule, re.M) for word in line.split()]
        spatch = ["spatch", "--very-quiet", "-D", "report", "--no-show-diff", *options, "--cocci-file", name]
        return findings(tree, *spatch, *files, words=r"^(?!warning: line \d+: should ).")

    return each(look, sorted(map(str, rules))) if files else ""


CHECKS: dict[str, Callable[[Tree], str]] = {
    "checkpatch": checkpatch,
    "clang-format": clang_format,
    "shellcheck": shellcheck,
    "codespell": codespell,
    "mypy": mypy,
    "coccinelle": coccinelle,
    "sparse": sparse,
    "analyzer": analyzer,
    "clang-tidy": clang_tidy,
}


def main() -> int:
    """Runs the checks named, or all; says what each took."""
    names = sys.argv[1:] or list(CHECKS)
    if unknown := set(names) - set(CHECKS):
        print(f"checks.py: no check {' '.join(unknown)}; there are: {' '.join(CHECKS)}", file=sys.stderr)
        return 2
    status = 0
    for name in names:
        started = time.monotonic()
        try:
            said = CHECKS[name](Tree())
        except DebianError as error:
            said = f"{error}\n"
        print(f"{said}{name}: {'see above' if said else 'clean'}, {time.monotonic() - started:.0f} s", flush=True)
        status |= bool(said)
    return status


if __name__ == "__main__":
    sys.exit(main())
