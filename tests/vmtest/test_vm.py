# SPDX-License-Identifier: GPL-2.0
"""Tests of the test VM itself: its results must be right before those of any other test mean anything."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import debian
import emulator
import initramfs
import kernels
import pytest
import runner
from qemu import QEMU
from runner import VM, Outcome, Result

RUN = debian.PROJECT / "vmtest" / "run"


@pytest.fixture(scope="module")
def own_vm(vendor: str) -> Iterator[VM]:
    """A VM that may be lost, without KVM."""
    # The emulator of Intel's processors runs one after the other: the fewer, the faster.
    with VM(memory=1024, cpus=1 if vendor == "intel" else None, vendor=vendor, answer_timeout=30) as machine:
        yield machine


def shell(vm: VM, script: str, timeout: float = 600, **options: object) -> Result:
    """timeout: in seconds as they are, without what a busy machine has more."""
    return vm.run("/bin/sh", "-c", script, timeout=timeout / vm.slowness, **options)  # type: ignore[arg-type]


def cli(*arguments: str, cwd: str | None = None, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(RUN), *arguments], cwd=cwd, timeout=timeout, capture_output=True, text=True)


def test_supported_kernels_are_known() -> None:
    lines = (debian.PROJECT / "versions.mk").read_text().splitlines()
    versions = [line.split(" := ")[1] for line in lines if line.startswith("KERNEL_M")]
    assert versions and set(versions) <= set(kernels.KERNELS)


def test_bugs_are_taken_out_of_the_emulator_that_has_them(tmp_path: Path) -> None:
    qemu = emulator.emulator()
    assert qemu.changed and qemu.accelerator == "tcg,thread=multi"
    changed = qemu.program.read_bytes()
    program = tmp_path / "qemu"
    program.write_bytes(changed)
    with pytest.raises(emulator.OtherBytes, match="another cpu_clear_ignne than this was written for"):
        emulator.take_bugs_out(program)
    assert program.read_bytes() == changed


def make_program(path: Path, changes: Sequence[emulator.Change], spoilt: int | None = None, twice: int | None = None) -> None:
    """A program of functions with the bytes that are to be changed, but for one change's."""
    functions: dict[str, list[str]] = {}
    for number, change in enumerate(changes):
        before = change.before.replace("..", "00")
        code = functions.setdefault(change.function, [])
        code += [("cc" + before[2:]) if number == spoilt else before, "90909090"]
        code += [before] if number == twice else []
    source = path.with_suffix(".S")
    with open(source, "w", encoding="ascii") as file:
        for name, code in functions.items():
            values = ", ".join(f"{byte:#x}" for byte in bytes.fromhex("".join(code)))
            file.write(f".globl {name}\n.type {name}, @function\n{name}: .byte {values}\n.size {name}, . - {name}\n")
    subprocess.run(["gcc", "-shared", "-nostdlib", "-o", str(path), str(source)], check=True)


@pytest.mark.parametrize("version", emulator.CHANGES)
def test_no_bug_is_taken_out_unless_all_are(tmp_path: Path, version: str) -> None:
    changes, program = emulator.CHANGES[version], tmp_path / "qemu"
    # One of the places is not as it was, or there are two of them, or a function is gone
    for number, change in enumerate(changes):
        for spoilt, twice in ((number, None), (None, number)):
            make_program(program, changes, spoilt, twice)
            before = program.read_bytes()
            with pytest.raises(emulator.OtherBytes, match=f"another {change.function} than this was written for"):
                emulator.take_bugs_out(program)
            assert program.read_bytes() == before
    make_program(program, [change for change in changes if change.function != "helper_vmrun"])
    before = program.read_bytes()
    with pytest.raises(emulator.OtherBytes, match="has no helper_vmrun"):
        emulator.take_bugs_out(program)
    assert program.read_bytes() == before

    make_program(program, changes)
    emulator.take_bugs_out(program)
    for change in changes:
        offset, size = emulator._place_in_file(program, change.function)
        assert bytes.fromhex(change.after) in program.read_bytes()[offset : offset + size]


def test_emulator_of_other_bytes_runs_its_processors_by_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # one that was changed already has not the bytes to change, as Debian's next one may not
    root = emulator.emulator().root
    fetched = 0

    def fetch(into: Path) -> None:
        nonlocal fetched
        fetched += 1
        shutil.copytree(root, into, symlinks=True)

    monkeypatch.setattr(emulator, "_unpack", fetch)
    monkeypatch.setattr(emulator, "CACHE", tmp_path)
    with VM(cpus=2) as machine:
        assert machine.run("nproc").stdout == "2\n"
        assert machine._machine
        command = Path(f"/proc/{machine._machine.pid}/cmdline").read_bytes().split(b"\0")
    assert command[0].startswith(os.fsencode(tmp_path)) and b"tcg,thread=single" in command
    unchanged = f"{root.name}-unchanged"
    assert emulator.emulator() == emulator.Emulator(tmp_path / unchanged, changed=False)
    assert fetched == 1
    assert capfd.readouterr().err.count("the test VM's processors run by turns") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", unchanged]


@pytest.mark.every_vendor
def test_kernel_is_patient_with_a_busy_host(own_vm: VM) -> None:
    """Its limits for stalls are as much longer than its own, which are for a machine that runs all the time, as ours."""
    names = ("module/rcupdate/parameters/rcu_cpu_stall_timeout", "kernel/watchdog_thresh", "kernel/hung_task_timeout_secs")
    files = (f"/sys/{names[0]}", *(f"/proc/sys/{name}" for name in names[1:]))
    limits = list(map(int, own_vm.run("cat", *files).stdout.split()))
    assert limits == [min(21 * own_vm.slowness, 300), min(10 * own_vm.slowness, 60), 120 * own_vm.slowness]


# Results


@pytest.mark.every_vendor
def test_ok(own_vm: VM) -> None:
    result = shell(own_vm, "echo out; echo err >&2")
    assert (result.outcome, result.status) == (Outcome.OK, 0)
    assert (result.stdout, result.stderr) == ("out\n", "err\n")
    assert result.complaints == []


@pytest.mark.parametrize("status", [1, 42, 124, 125, 126, 127, 255])
def test_exit_status(own_vm: VM, status: int) -> None:
    result = shell(own_vm, f"exit {status}")
    assert (result.outcome, result.status) == (Outcome.FAILED, status)


@pytest.mark.every_vendor
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGRTMIN + 3])
def test_killed_by_signal(own_vm: VM, number: int) -> None:
    result = shell(own_vm, f"kill -{number} $$")
    assert (result.outcome, result.status) == (Outcome.FAILED, 128 + number)
    assert f"killed by signal {number} " in result.reason


@pytest.mark.every_vendor
def test_cannot_be_started(own_vm: VM) -> None:
    result = own_vm.run("no-such-command")
    assert (result.outcome, result.status) == (Outcome.FAILED, 127)
    assert "No such file" in result.reason
    result = own_vm.run("true", cwd="/no/such/directory")
    assert (result.outcome, result.status) == (Outcome.FAILED, 127)
    assert "/no/such/directory" in result.reason


def test_output_is_streamed(own_vm: VM) -> None:
    seen: list[tuple[float, bytes]] = []
    result = shell(
        own_vm, "echo first; sleep 5; echo second", on_stdout=lambda data: seen.append((time.monotonic(), data))
    )
    assert result.stdout == "first\nsecond\n"
    assert [data for _, data in seen] == [b"first\n", b"second\n"]
    assert seen[1][0] - seen[0][0] > 1


def test_much_input_and_output(own_vm: VM) -> None:
    data = os.urandom(1 << 20).hex().encode()
    result = own_vm.run("tee", "/dev/stderr", stdin=data)
    assert result.outcome is Outcome.OK
    assert result.stdout.encode() == data
    assert result.stderr.encode() == data


def test_input_that_nobody_reads(own_vm: VM) -> None:
    assert own_vm.run("true", stdin=bytes(1 << 20)).outcome is Outcome.OK
    assert shell(own_vm, "cat", stdin=b"next").stdout == "next"


@pytest.mark.every_vendor
def test_timeout(own_vm: VM, vendor: str) -> None:
    result = shell(own_vm, "echo before; trap '' TERM INT; sleep 100", timeout=2)
    assert (result.outcome, result.status) == (Outcome.TIMED_OUT, None)
    assert result.stdout == "before\n"
    # Its sleep was not waited for; and two seconds may be fewer of ours where an idle VM's clock runs ahead
    assert (0 if vendor == "intel" else 2) <= result.seconds < 100
    boots = own_vm.boots
    assert own_vm.run("true").outcome is Outcome.OK
    assert own_vm.boots == boots


@pytest.mark.every_vendor
def test_nothing_outlives_its_command(own_vm: VM) -> None:
    result = shell(own_vm, "setsid sleep 1234 & echo started")
    assert result.stdout == "started\n"
    assert result.seconds < 1234
    assert shell(own_vm, "cat /proc/[0-9]*/comm | grep -x sleep").status == 1


def test_output_is_not_that_of_another_command(own_vm: VM) -> None:
    shell(own_vm, "setsid sh -c 'while :; do echo leak; done' & exit 0")
    result = own_vm.run("echo", "mine")
    assert (result.stdout, result.stderr) == ("mine\n", "")


@pytest.mark.every_vendor
def test_environment(own_vm: VM) -> None:
    os.environ["MEMSLOT_TEST_LEAK"] = "1"
    try:
        lines = own_vm.run("env", env={"WANTED": "a b"}, cwd="/usr").stdout.splitlines()
    finally:
        del os.environ["MEMSLOT_TEST_LEAK"]
    assert "WANTED=a b" in lines
    assert not [line for line in lines if line.startswith("MEMSLOT_TEST_LEAK")]


def test_what_cannot_be_killed() -> None:
    script = """
        set -e
        modprobe -a loop ext4
        truncate -s 16M /tmp/image
        mkfs.ext4 -q /tmp/image
        mkdir /tmp/mounted
        mount -o loop /tmp/image /tmp/mounted
        fsfreeze --freeze /tmp/mounted
        touch /tmp/mounted/file
    """
    with VM() as machine:
        result = shell(machine, script, timeout=30)
        assert (result.outcome, result.reason) == (Outcome.TIMED_OUT, "timed out, and it cannot be killed")
        assert any("task:touch" in line and "state:D" in line for line in result.kernel_log), result.report()
        assert machine.run("true").outcome is Outcome.OK
        assert machine.boots == 2


# What the VM is


def test_host_files_are_there_and_safe(own_vm: VM, tmp_path_factory: pytest.TempPathFactory) -> None:
    this = Path(__file__).resolve()
    assert own_vm.run("cat", this).stdout == this.read_text()
    victim = debian.CACHE / "vm-must-not-write-this"
    assert shell(own_vm, f"echo x > {victim} && cat {victim}").stdout == "x\n"
    assert not victim.exists()
    assert own_vm.run("cat", victim).stdout == "x\n"


@pytest.mark.every_vendor
def test_own_directories(own_vm: VM) -> None:
    script = """
        set -e
        for directory in /tmp /run /dev/shm; do echo x > $directory/file; rm $directory/file; done
        test -d /sys/kernel/debug/tracing -a -e /dev/ptmx -a -e /dev/fd/0 -a -d "/lib/modules/$(uname -r)"
        uname -r
    """
    result = shell(own_vm, script)
    assert result.outcome is Outcome.OK, result.report()
    assert result.stdout.strip() == own_vm.kernel.release


@pytest.mark.every_kernel
def test_module_is_loaded(run_in_vm: Callable[..., Result]) -> None:
    script = "set -e; grep -q '^memslot ' /proc/modules; test -c /dev/kvm; test -c /dev/memslot"
    run_in_vm("/bin/sh", "-c", script)


# The kernel's log, and its death


@pytest.mark.every_vendor
@pytest.mark.parametrize(
    "line",
    [
        "WARNING: CPU: 0 PID: 1 at virt/kvm/kvm_main.c:1 f+0x1/0x2",
        "WARNING: possible circular locking dependency detected",
        "WARNING: suspicious RCU usage",
        "BUG: KASAN: use-after-free in f+0x1/0x2",
        "BUG: sleeping function called from invalid context at mm/slab.h:1",
        "general protection fault, maybe for address 0x1: 0000 [#1] PREEMPT SMP",
        "kernel BUG at arch/x86/kvm/mmu/tdp_mmu.c:1!",
        "INFO: task vcpu:1 blocked for more than 120 seconds.",
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
        "unreferenced object 0xffff888003a5d600 (size 64):",
    ],
)
def test_complaint_is_found(own_vm: VM, line: str) -> None:
    result = own_vm.run("tee", "/dev/kmsg", stdin=line.encode())
    assert [complaint.split("] ", 1)[1] for complaint in result.complaints] == [line]
    assert own_vm.complaints[-1:] == result.complaints
    assert own_vm.run("true").complaints == []


@pytest.mark.every_vendor
@pytest.mark.parametrize(
    "line",
    ["kvm: Nested Virtualization enabled", "traps: a.out[9] general protection fault ip:1 sp:2 error:0 in a.out"],
)
def test_harmless_line_is_no_complaint(own_vm: VM, line: str) -> None:
    result = own_vm.run("tee", "/dev/kmsg", stdin=line.encode())
    assert result.complaints == []
    assert [logged for logged in result.kernel_log if line in logged]


def test_overrun_of_the_log_is_a_complaint(own_vm: VM) -> None:
    line = "<7>" + "x" * 900  # one write is one record
    result = shell(own_vm, f"yes '{line}' | dd bs={len(line) + 1} iflag=fullblock count=6000 of=/dev/kmsg")
    assert [complaint for complaint in result.complaints if "overran" in complaint], result.report()


@pytest.mark.every_vendor
def test_lost_vm(own_vm: VM) -> None:
    boots = own_vm.boots
    result = shell(own_vm, "echo before; echo c > /proc/sysrq-trigger; sleep 60")
    assert (result.outcome, result.status) == (Outcome.LOST, None)
    assert "sysrq triggered crash" in result.console
    assert result.complaints
    # and it boots again
    assert own_vm.run("true").outcome is Outcome.OK
    assert own_vm.boots == boots + 1


@pytest.mark.any_vendor
@pytest.mark.parametrize(
    "end",
    ["echo o > /proc/sysrq-trigger", "echo b > /proc/sysrq-trigger", r"printf '\376' | dd of=/dev/port bs=1 seek=100"],
    ids=["powered off", "restarted", "reset"],
)
def test_ended_vm_is_lost(own_vm: VM, end: str) -> None:
    assert shell(own_vm, f"{end}; sleep 60").outcome is Outcome.LOST


@pytest.mark.every_vendor
def test_vm_is_what_was_asked_for(own_vm: VM, vendor: str) -> None:
    """The virtualization is the vendor's, and of what was not asked for there is nothing."""
    flag = runner.VENDORS[vendor]
    result = shell(own_vm, f"grep -qw {flag} /proc/cpuinfo && ! grep -w kvm /proc/modules && nproc")
    assert result.outcome is Outcome.OK, result.report()
    assert int(result.stdout) == own_vm.cpus


@pytest.mark.every_vendor
def test_built_programs_are_there(own_vm: VM) -> None:
    """Also where the VM sees none of the host's files: with their libraries, and bash."""
    program = debian.PROJECT / "build" / "guests" / "churn"
    result = own_vm.run("/bin/bash", "-c", f"[[ $PWD = {debian.PROJECT} ]] && {program} --unknown")
    assert result.status == 2 and "churn: there is no option --unknown" in result.stderr, result.report()


def processor_seconds(pid: int) -> float:
    """What a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def test_emulator_of_intels_rests_while_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processors' idleness would be another VM's time; and it goes on where it was."""
    monkeypatch.setattr(runner, "hardware_virtualization", lambda: None)
    program = debian.PROJECT / "tests" / "system" / "boots.py"
    # The VM has a /tmp of its own, and what is packed of the machine's
    with (
        tempfile.NamedTemporaryFile("w", dir="/tmp") as packed,
        VM(vendor="intel", cpus=1, memory=1024, files=[program, Path(packed.name)]) as machine,
    ):
        print("packed", file=packed, flush=True)
        machine.start()
        assert machine._machine
        before = processor_seconds(machine._machine.pid)
        assert before > 1
        time.sleep(1)
        assert processor_seconds(machine._machine.pid) == pytest.approx(before, abs=0.1)
        # A program in Python is there with all that it imports
        result = machine.run(program, "--boots", "0")
        assert result.outcome is Outcome.OK, result.report()
        assert machine.run("cat", packed.name).stdout == "packed\n"


def names_in(archive: bytes) -> set[str]:
    """What is in a cpio archive (newc)."""
    names, at = set(), 0
    while archive[at : at + 6] == b"070701":
        size, name_size = (int(archive[at + offset : at + offset + 8], 16) for offset in (54, 94))
        names.add(archive[at + 110 : at + 109 + name_size].decode())
        at += -(-(110 + name_size) // 4) * 4 + -(-size // 4) * 4
    return names


def test_what_is_packed_for_a_vm_without_the_hosts_files(tmp_path: Path) -> None:
    """Files that are asked for, programs with their libraries, and the kernel's modules as modprobe looks for them."""
    (tmp_path / "program").symlink_to("/usr/bin/make")
    runner._build_agent()
    kernel = kernels.kernel(runner.DEFAULT_KERNEL)
    packed = initramfs.packing(kernel, ["kvm_intel"], [tmp_path / "program"], [tmp_path / "empty"], "/dev/port")
    names = names_in(packed)
    assert {f"{tmp_path}/program"[1:], f"{tmp_path}/empty"[1:], "bin/sh", "lib64/ld-linux-x86-64.so.2"} <= names
    assert [name for name in names if name.endswith("/libc.so.6")]
    modules = f"lib/modules/{kernel.release}"
    assert {f"{modules}/kernel/arch/x86/kvm/{name}.ko" for name in ("kvm", "kvm-intel")} | {f"{modules}/modules.dep"} <= names
    assert not [name for name in names if name.endswith("/kvm-amd.ko")]


def test_more_memory_than_the_emulator_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "hardware_virtualization", lambda: None)
    with VM(vendor="intel", memory=4096) as machine, pytest.raises(runner.VMError, match="at most 3072 MiB"):
        machine.start()


@pytest.mark.parametrize("options", [{"kvm": "npt=0"}, {"vendor": "intel", "counting": True}], ids=str)
def test_vm_that_cannot_be(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="parameters|counts"):
        VM(**options)  # type: ignore[arg-type]


def test_counting_vm_counts() -> None:
    with VM(counting=True) as machine:
        result = shell(machine, "nproc; cat /sys/devices/system/clocksource/clocksource0/current_clocksource; grep MHz /proc/cpuinfo")
    processors, clock, megahertz = result.stdout.splitlines()
    assert (processors, clock) == ("1", "tsc")
    # An instruction is a nanosecond, and a cycle
    assert float(megahertz.split(":")[1]) == pytest.approx(1000, abs=1)


def test_death_between_commands_is_not_missed(own_vm: VM) -> None:
    own_vm.start()
    assert isinstance(own_vm._machine, QEMU)
    own_vm._machine.interrupt()  # the kernel panics
    own_vm._machine.wait(600)
    result = own_vm.run("true")
    assert result.outcome is Outcome.LOST
    assert "Kernel panic" in result.console


def test_hung_vm_says_where(own_vm: VM) -> None:
    script = """
        echo -1 > /proc/sys/kernel/sched_rt_runtime_us
        for cpu in $(seq 0 $(($(nproc) - 1))); do taskset -c $cpu chrt -f 99 sh -c 'while :; do :; done' & done
        wait
    """
    # By then all of them run
    result = shell(own_vm, script, timeout=30)
    assert (result.outcome, result.reason) == (Outcome.LOST, "the VM hung")
    assert "Kernel panic - not syncing: NMI" in result.console


def test_vm_that_does_not_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initramfs, "HOSTS_ROOT", initramfs.HOSTS_ROOT.replace(" host /host", " no-such-tag /host"))
    with VM() as machine, pytest.raises(runner.VMError, match=r"(?s)died while it booted.*no-such-tag /host failed"):
        machine.start()


def test_vm_without_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.VM, "module_path", Path("/no/such/memslot.ko"))
    with VM(module=True) as machine, pytest.raises(runner.VMError, match="make module"):
        machine.start()


def test_qemu_dies_with_its_parent() -> None:
    code = (
        "import os, sys; sys.path += sys.argv[1:]; import runner; vm = runner.VM(); vm.start();"
        "print(vm._machine.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-c", code, str(RUN.parent), str(debian.PROJECT / "scripts")], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    deadline = time.monotonic() + 300
    while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline, f"QEMU {pid} lives on"
        time.sleep(0.1)


# The command


def test_cli_passes_through() -> None:
    done = cli("--vendor", "amd", "--kvm", "npt=0", "--", "sh", "-c", "cat /sys/module/kvm_amd/parameters/npt; echo e >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "N\n", "e\n")


def test_cli_timeout() -> None:
    done = cli("--timeout", "1", "sleep", "100")
    assert done.returncode == 124
    assert "timed out" in done.stderr


def test_cli_lost_vm() -> None:
    done = cli("sh", "-c", "echo c > /proc/sysrq-trigger; sleep 60")
    assert done.returncode == 125
    assert "sysrq triggered crash" in done.stderr


def test_cli_complaint() -> None:
    done = cli("sh", "-c", "echo 'WARNING: of a test' > /dev/kmsg")
    assert done.returncode == 126
    assert "WARNING: of a test" in done.stderr


def test_cli_wrong_module_parameter() -> None:
    done = cli("--vendor", "amd", "--kvm", "npt=maybe", "true")
    assert done.returncode == 123
    assert "loading modules" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND is missing"),
        (["--"], "COMMAND is missing"),
        (["--kernel", "2.4", "true"], "invalid choice: '2.4'"),
        (["--cpus", "0", "true"], "'0' is not a number of at least 1"),
        (["--counting", "--cpus", "2", "true"], "--counting is for one processor"),
        (["--counting", "--vendor", "intel", "true"], "--counting is for amd"),
        (["--kvm", "npt=0", "true"], "--kvm takes --vendor"),
        (["--vendor", "via", "true"], "invalid choice: 'via'"),
        (["--memory", "much", "true"], "'much' is not a number of at least 256"),
        (["--memory", "16", "true"], "'16' is not a number of at least 256"),
        (["--timeout", "-1", "true"], "invalid seconds value: '-1'"),
        (["--timeout", "nan", "true"], "invalid seconds value: 'nan'"),
        (["--no-such-option", "true"], "unrecognized arguments: --no-such-option"),
        (["--shell", "true"], "--shell takes no COMMAND"),
        (["--shell"], "--shell needs a terminal"),
    ],
)
def test_cli_wrong_usage(arguments: list[str], message: str) -> None:
    done = cli(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_cli_shell() -> None:
    pid, terminal = pty.fork()
    if not pid:
        os.execl(RUN, str(RUN), "--shell")
    output = b""

    def wait_for(text: bytes) -> None:
        nonlocal output
        deadline = time.monotonic() + 900
        while text not in output:
            assert select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0], output
            output += os.read(terminal, 4096)

    try:
        wait_for(b"[memslot-vm]")
        # the terminal is in raw mode: Ctrl-C goes to the VM
        os.write(terminal, b"sh -c 'echo sleeps$((40 + 2)); sleep 1000'\r")
        wait_for(b"sleeps42")
        os.write(terminal, b"\x03")
        os.write(terminal, b"tty; stty size; echo a$((40 + 2))z; exit 5\r")
        wait_for(b"a42z")
        assert b"/dev/pts/" in output
        with contextlib.suppress(OSError):  # how a terminal says end of file
            wait_for(b"never")
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 5
