# SPDX-License-Identifier: GPL-2.0
"""userlib/memslot.hpp: it compiles, installs, is found, and says what it should, in the VM, too."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from building import BUILD, make
from debian import PROJECT
from runner import Result

USERLIB = PROJECT / "userlib"
PREFIX = "/opt/memslot"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wsign-conversion"]
COMPILERS = ["g++", "clang++"]
EXAMPLES = {
    "replace": "1 created, 1 replaced, strategy fence\n",
    "hotplug": "33 slots, 33 MiB\n",
}


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
    """Without the module an example must say so; with it (never in CI) it must work."""
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        assert done.stdout == EXAMPLES[program.name]
    else:
        assert re.search(r"/dev/kvm: |modprobe memslot|join the group", done.stderr)


@pytest.fixture(scope="module")
def programs() -> Path:
    """Where the programs that need the module are, built."""
    make(USERLIB, "examples", "vm-tests")
    return BUILD / "userlib"


@pytest.fixture(scope="module")
def destdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation as a distribution's package would make it."""
    path = tmp_path_factory.mktemp("destdir")
    run("make", "-C", USERLIB, "install", f"DESTDIR={path}", f"PREFIX={PREFIX}")
    return path


@pytest.mark.parametrize("exceptions", ["-fexceptions", "-fno-exceptions"])
@pytest.mark.parametrize("standard", ["c++20", "c++2b"])
@pytest.mark.parametrize("cxx", COMPILERS)
def test_header_compiles_alone(cxx: str, standard: str, exceptions: str, tmp_path: Path) -> None:
    source = tmp_path / "alone.cpp"
    source.write_text("#include <memslot.hpp>\n#include <memslot.hpp>\n")
    run(
        compiler(cxx), f"-std={standard}", exceptions, *WARNINGS, "-Werror", "-fsyntax-only",
        f"-I{USERLIB}", f"-I{PROJECT / 'uapi'}", source,
    )  # fmt: skip


@pytest.mark.parametrize("program", ["batch", "calls", "no_exceptions"])
@pytest.mark.parametrize("cxx", COMPILERS)
def test_without_module(cxx: str, program: str, tmp_path: Path) -> None:
    """What batches hold; what the kernel is asked for, and what becomes of its answers."""
    built = tmp_path / program
    without = ["-fno-exceptions", "-fno-rtti"] if program == "no_exceptions" else []
    run(
        compiler(cxx), "-std=c++20", *without, *WARNINGS, "-Werror", "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all", f"-I{USERLIB}", f"-I{PROJECT / 'uapi'}",
        USERLIB / f"tests/{program}.cpp", "-o", built,
    )  # fmt: skip
    run(built)


ENUMS = ["memslot_reason", "memslot_strategy", "memslot_park_cause"]
INTERFACE = (PROJECT / "uapi/linux/memslot.h").read_text()


def syntax(cxx: str, directory: Path, interface: str, *flags: str, edit: tuple[str, str] = ("", "")) -> str:
    """What a compiler says of memslot.hpp, maybe changed, with this <linux/memslot.h>; nothing if it is content."""
    (directory / "linux").mkdir(exist_ok=True)
    (directory / "linux/memslot.h").write_text(interface)
    header = (USERLIB / "memslot.hpp").read_text()
    assert edit[0] in header
    (directory / "memslot.hpp").write_text(header.replace(*edit))
    (directory / "user.cpp").write_text("#include <memslot.hpp>\n")
    command: list[str | Path] = [compiler(cxx), "-std=c++20", "-fsyntax-only", f"-I{directory}", *flags, directory / "user.cpp"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert bool(done.returncode) == bool(done.stderr)
    return done.stderr


@pytest.mark.parametrize("cxx", COMPILERS)
def test_every_enumerator_has_words(cxx: str, tmp_path: Path) -> None:
    """The compiler looks for us, as it would for users if the header let it."""
    edit = ('ignored "-Wswitch"', 'error "-Wswitch"')
    assert syntax(cxx, tmp_path, INTERFACE, edit=edit) == ""
    for enum in ENUMS:
        newer = INTERFACE.replace(f"enum {enum} {{", f"enum {enum} {{ MEMSLOT_NEW = 1000,")
        assert newer != INTERFACE
        assert "MEMSLOT_NEW" in syntax(cxx, tmp_path, newer, edit=edit)


@pytest.mark.parametrize("cxx", COMPILERS)
def test_newer_interface_disturbs_no_build(cxx: str, tmp_path: Path) -> None:
    """A <linux/memslot.h> with more enumerators and fields than memslot.hpp knows, and a user who has -Werror."""
    newer = INTERFACE
    for enum in ENUMS:
        newer = newer.replace(f"enum {enum} {{", f"enum {enum} {{ {enum.upper()}_NEW = 1000,")
    newer, structs = re.subn(r"^(struct memslot_\w+ \{.*?)^\};", r"\1\t__aligned_u64 newer;\n};", newer, flags=re.M | re.S)
    assert structs == 7
    switches = ["-Wswitch", "-Wswitch-enum", "-Wswitch-default", "-Wmissing-field-initializers"]
    assert syntax(cxx, tmp_path, newer, *WARNINGS, *switches, "-Werror") == ""


def test_every_feature_has_words() -> None:
    """Features are bits, which no compiler counts."""
    bits = re.findall(r"^#define (MEMSLOT_FEATURE_\w+)\t", (PROJECT / "uapi/linux/memslot.h").read_text(), re.M)
    header = (USERLIB / "memslot.hpp").read_text()
    named = dict(re.findall(r"^\t(\w+) = (MEMSLOT_FEATURE_\w+),$", header, re.M))
    assert sorted(named.values()) == sorted(bits) != []
    (listed,) = re.findall(r"std::array features\{(.*?)\};", header, re.S)
    assert sorted(re.findall(r"feature::(\w+)", listed)) == sorted(named)
    assert sorted(re.findall(r"case feature::(\w+):", header)) == sorted(named)


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_with_pkg_config(example: str, destdir: Path, tmp_path: Path) -> None:
    env = {
        "PKG_CONFIG_PATH": f"{destdir}{PREFIX}/share/pkgconfig",
        "PKG_CONFIG_SYSROOT_DIR": str(destdir),
    }
    run("pkg-config", "--atleast-version=0.1", "memslot", env=env)
    flags = run("pkg-config", "--cflags", "memslot", env=env).split()
    assert flags == [f"-I{destdir}{PREFIX}/include"]
    program = tmp_path / example
    run(
        compiler("g++"), "-std=c++20", *WARNINGS, "-Werror", "-pthread", *flags,
        USERLIB / f"examples/{example}.cpp", "-o", program,
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


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_with_module(example: str, programs: Path, run_in_vm: Callable[..., Result]) -> None:
    assert run_in_vm(programs / example).stdout == EXAMPLES[example]


def test_with_module(programs: Path, run_in_vm: Callable[..., Result]) -> None:
    """Queries, replace all, if generation and last dirty bitmaps of a real VM."""
    run_in_vm(programs / "vm")


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
