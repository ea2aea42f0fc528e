# SPDX-License-Identifier: GPL-2.0
"""userlib/memslot.hpp on the host: it compiles, installs, is found, and its batches are right."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
USERLIB = ROOT / "userlib"
PREFIX = "/opt/memslot"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wsign-conversion"]
COMPILERS = ["g++", "clang++"]


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def compiler(name: str) -> str:
    path = shutil.which(name)
    assert path, f"{name} is not installed: apt-get install g++ clang"
    return path


def run_example(program: Path) -> None:
    """Without the module the example must say so; with it (never in CI) it must work."""
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        assert "1 created, 1 replaced" in done.stdout
    else:
        assert re.search(r"/dev/kvm: |modprobe memslot|join the group", done.stderr)


@pytest.fixture(scope="module")
def destdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation as a distribution's package would make it."""
    path = tmp_path_factory.mktemp("destdir")
    run("make", "-C", USERLIB, "install", f"DESTDIR={path}", f"PREFIX={PREFIX}")
    return path


@pytest.mark.parametrize("standard", ["c++20", "c++2b"])
@pytest.mark.parametrize("cxx", COMPILERS)
def test_header_compiles_alone(cxx: str, standard: str, tmp_path: Path) -> None:
    source = tmp_path / "alone.cpp"
    source.write_text("#include <memslot.hpp>\n#include <memslot.hpp>\n")
    run(
        compiler(cxx), f"-std={standard}", *WARNINGS, "-Werror", "-fsyntax-only",
        f"-I{USERLIB}", f"-I{ROOT / 'uapi'}", source,
    )  # fmt: skip


@pytest.mark.parametrize("cxx", COMPILERS)
def test_batch_builder(cxx: str, tmp_path: Path) -> None:
    program = tmp_path / "batch"
    run(
        compiler(cxx), "-std=c++20", *WARNINGS, "-Werror", "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all", f"-I{USERLIB}", f"-I{ROOT / 'uapi'}",
        USERLIB / "tests/batch.cpp", "-o", program,
    )  # fmt: skip
    run(program)


@pytest.mark.parametrize("cxx", COMPILERS)
def test_reason_without_words_does_not_compile(cxx: str, tmp_path: Path) -> None:
    header = (ROOT / "uapi/linux/memslot.h").read_text()
    command: list[str | Path] = [
        compiler(cxx), "-std=c++20", "-fsyntax-only", "-x", "c++",
        f"-I{tmp_path}", USERLIB / "memslot.hpp",
    ]  # fmt: skip
    (tmp_path / "linux").mkdir()
    copy = tmp_path / "linux/memslot.h"

    copy.write_text(header)
    run(*command)

    more, count = re.subn(r"(enum memslot_reason \{)", r"\1 MEMSLOT_REASON_NEW = 1000,", header)
    assert count == 1
    copy.write_text(more)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "MEMSLOT_REASON_NEW" in done.stderr


def test_example_with_pkg_config(destdir: Path, tmp_path: Path) -> None:
    env = {
        "PKG_CONFIG_PATH": f"{destdir}{PREFIX}/share/pkgconfig",
        "PKG_CONFIG_SYSROOT_DIR": str(destdir),
    }
    run("pkg-config", "--atleast-version=0.1", "memslot", env=env)
    flags = run("pkg-config", "--cflags", "memslot", env=env).split()
    assert flags == [f"-I{destdir}{PREFIX}/include"]
    program = tmp_path / "replace"
    run(
        compiler("g++"), "-std=c++20", *WARNINGS, "-Werror", *flags,
        USERLIB / "examples/replace.cpp", "-o", program,
    )  # fmt: skip
    run_example(program)


def test_example_with_cmake(destdir: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\n"
        "project(example CXX)\n"
        "find_package(memslot 0.1 REQUIRED)\n"
        f'add_executable(replace "{USERLIB}/examples/replace.cpp")\n'
        "target_link_libraries(replace PRIVATE memslot::memslot)\n"
    )
    build = tmp_path / "build"
    run("cmake", "-S", tmp_path, "-B", build, f"-DCMAKE_PREFIX_PATH={destdir}{PREFIX}")
    run("cmake", "--build", build)
    run_example(build / "replace")


def test_cmake_refuses_another_major_version(destdir: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\n"
        "project(example NONE)\n"
        "find_package(memslot 99 REQUIRED)\n"
    )
    done = subprocess.run(
        ["cmake", "-S", tmp_path, "-B", tmp_path / "build",
         f"-DCMAKE_PREFIX_PATH={destdir}{PREFIX}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "version: 0." in done.stderr


def test_uninstall_leaves_nothing(tmp_path: Path) -> None:
    run("make", "-C", USERLIB, "install", f"DESTDIR={tmp_path}", f"PREFIX={PREFIX}")
    run("make", "-C", USERLIB, "uninstall", f"DESTDIR={tmp_path}", f"PREFIX={PREFIX}")
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []
