# SPDX-License-Identifier: GPL-2.0
"""What must hold for the sources themselves."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import checks
import kernels
import pytest
from building import make_module
from debian import PROJECT

VERSION_WORDS = re.compile(r"\b(LINUX_VERSION_CODE|KERNEL_VERSION)\b")
DEBIAN_KERNELS = [name for name, source in kernels.KERNELS.items() if not source.built_from]
# Debian's tools allow no comments in them.
WITHOUT_COMMENTS = {"debian/changelog", "debian/source/format"}
LICENCES = {"uapi": "GPL-2.0 WITH Linux-syscall-note", "userlib": "MIT"}


def sources() -> list[Path]:
    """The files of the project: tracked, or new and not ignored."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [PROJECT / name for name in sorted(listing.split("\0")) if name and (PROJECT / name).is_file()]


def kernel_sources() -> list[Path]:
    return [path for path in sources() if path.relative_to(PROJECT).parts[0] == "module"]


def test_every_file_names_its_licence() -> None:
    wrong = []
    for path in sources():
        name = path.relative_to(PROJECT)
        if (name.parts[0] == "LICENSES" and name.suffix == ".txt") or str(name) in WITHOUT_COMMENTS:
            continue
        head = path.read_text(errors="replace")[:600]
        if f"SPDX-License-Identifier: {LICENCES.get(name.parts[0], 'GPL-2.0')}" not in head:
            wrong.append(str(name))
    assert not wrong


def test_kernel_versions_are_in_compat_only() -> None:
    wrong = [str(path) for path in kernel_sources() if "compat" not in path.parts and VERSION_WORDS.search(path.read_text())]
    assert not wrong


def test_dkms_builds_for_the_supported_kernels() -> None:
    versions = dict(re.findall(r"^(KERNEL_M\w+) := (\S+)$", (PROJECT / "versions.mk").read_text(), re.M))
    assert set(versions) == {"KERNEL_MIN", "KERNEL_MAX"}
    pattern = re.search(r'^BUILD_EXCLUSIVE_KERNEL="(.*)"$', (PROJECT / "dkms.conf").read_text(), re.M)
    assert pattern
    for version in {*versions.values(), *DEBIAN_KERNELS}:
        assert re.match(pattern[1], f"{version}.0-1-amd64")
    major, minor = map(int, versions["KERNEL_MAX"].split("."))
    assert not re.match(pattern[1], f"{major}.{minor + 1}.0-1-amd64")


def test_operations_tell_every_ioctl() -> None:
    """Who allows them by number must get the numbers."""
    header = (PROJECT / "uapi" / "linux" / "memslot.h").read_text()
    (kind,) = re.findall(r"^#define MEMSLOT_IOC_TYPE (0x\w+)$", header, re.M)
    numbers = dict(re.findall(r"^#define (MEMSLOT_IOC_\w+) _IO\(MEMSLOT_IOC_TYPE, (\d+)\)$", header, re.M))
    assert len(numbers) == header.count("_IO(MEMSLOT_IOC_TYPE") > 0
    told = dict(re.findall(r"^\| `(MEMSLOT_IOC_\w+)` \| (0x\w+) \|", (PROJECT / "docs" / "operations.md").read_text(), re.M))
    assert {name: int(number, 16) for name, number in told.items()} == {
        name: int(kind, 16) << 8 | int(number) for name, number in numbers.items()
    }


@pytest.mark.parametrize("extra", [["W=1", "KCFLAGS=-Werror"], ["C=2", "CF=-Wsparse-error"]], ids=["W=1", "sparse"])
@pytest.mark.parametrize("kernel", [kernel for kernel in DEBIAN_KERNELS if kernel != checks.KERNEL])
def test_module_builds_without_warnings(tmp_path: Path, kernel: str, extra: list[str]) -> None:
    run = make_module(tmp_path, kernel, *extra)
    said = run.stdout + run.stderr
    assert run.returncode == 0, said
    assert not re.search(r"\b(warning|error):", said), said


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("CONFIG_KPROBES=", "memslot needs a kernel with CONFIG_KPROBES: it finds kallsyms_lookup_name() with a kprobe"),
        ("CONFIG_PREEMPT_RT=y", "memslot needs a kernel without CONFIG_PREEMPT_RT: parking reads the owner"),
        ("KERNEL_MIN=6.2", "memslot needs Linux 6.2 or newer, this is 6.1"),
    ],
    ids=["missing", "unwanted", "old"],
)
def test_build_says_what_it_cannot_do(tmp_path: Path, setting: str, sentence: str) -> None:
    run = make_module(tmp_path, "6.1", setting)
    assert run.returncode != 0
    errors = [line for line in run.stderr.splitlines() if "memslot" in line]
    assert len(errors) == 1 and sentence in errors[0], run.stderr
    assert "  CC " not in run.stdout


def test_newer_kernel_builds_with_one_warning(tmp_path: Path) -> None:
    run = make_module(tmp_path, "6.12", "KERNEL_MAX=6.11")
    said = run.stdout + run.stderr
    assert run.returncode == 0, said
    warnings = [line for line in said.splitlines() if "warning:" in line]
    assert len(warnings) == 1 and "memslot is untested on this kernel" in warnings[0], said
