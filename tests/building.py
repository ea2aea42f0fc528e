# SPDX-License-Identifier: GPL-2.0
"""What tests build: programs that run in the VM, and modules that are not the one that "make module" makes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from debian import PROJECT, locked
from kernels import linux_source, make_command
from runner import DEFAULT_KERNEL

BUILD = Path(os.environ.get("BUILD", PROJECT / "build"))
SOURCES = PROJECT / "module"


def make(folder: Path, *arguments: str | Path) -> str:
    """What make says; two that build the same files at once, in two workers of one pytest, would meet halves."""
    command: list[str | Path] = ["make", "--silent", "-C", folder, f"BUILD={BUILD}", *arguments]
    with locked(BUILD):
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def make_kselftests() -> list[str]:
    """Builds tests/kselftest, and says which programs there are."""
    folder = PROJECT / "tests" / "kselftest"
    make(folder, f"LINUX_SOURCE={linux_source(DEFAULT_KERNEL)}")
    return make(folder, "programs").split()


def make_module(
    directory: Path, kernel: str, *arguments: str, edit: Callable[[str], str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Builds the module in directory/build, from sources that went through edit."""
    for shared in ("uapi", "versions.mk", "dkms.conf"):
        (directory / shared).symlink_to(PROJECT / shared)
    build = directory / "build"
    for source in SOURCES.rglob("*"):
        if source.suffix not in {".c", ".h", ".mk"} and source.name != "Kbuild":
            continue
        copy = build / source.relative_to(SOURCES)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(edit(source.read_text()) if edit else source.read_text())
    command = make_command(kernel, f"M={build}", *arguments, "modules", shared=[directory])
    return subprocess.run(command, capture_output=True, text=True, check=False)
