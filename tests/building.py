# SPDX-License-Identifier: GPL-2.0
"""Builds of the module that are not the one that "make module" makes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from debian import PROJECT
from kernels import make_command

SOURCES = PROJECT / "module"


def make_module(
    directory: Path, kernel: str, *arguments: str, edit: Callable[[str], str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Builds the module in directory/build, from sources that went through edit."""
    for shared in ("uapi", "versions.mk"):
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
