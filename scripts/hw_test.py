#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Runs tests of memslot on this machine itself, with its own /dev/kvm, and writes a report to send back.

All other tests run in emulated machines; this is for the first person who has a real one to spare.  It loads memslot.ko into
the running kernel, and a bug in that can take the machine down: so it asks first, and it refuses where virtual machines are
running.  It unloads the module at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kernel_log import COMPLAINT

PROJECT = Path(__file__).resolve().parent.parent
BUILD = PROJECT / "build"
DEVICE = Path("/dev/memslot")
REPORT = BUILD / "hw-test.txt"
TIMEOUT = 600  # seconds, of one item; it only ends what hangs

# The exit status of a program where KVM cannot do what it is about
NOT_IN_THIS_KVM = 77
RESULT = re.compile(r"^(not )?ok \d+ (# SKIP )?", re.M)

# The parameters of KVM that decide which way a commit goes
PARAMETERS = {
    "kvm": ("tdp_mmu",),
    "kvm_amd": ("npt", "nested", "avic", "sev"),
    "kvm_intel": ("ept", "nested", "pml", "eptad", "unrestricted_guest", "enable_apicv"),
}


class CannotTest(Exception):
    """Nothing was tested; the message says why, and what to do."""


@dataclass
class Item:
    """A program, and how its output is judged: what went wrong, or nothing."""

    name: str
    command: list[str]
    judge: Callable[[subprocess.CompletedProcess[str]], str]


@dataclass
class Verdict:
    name: str
    outcome: str  # passed, failed, skipped
    text: str = ""  # why
    log: list[str] = field(default_factory=list)  # what the kernel said
    seconds: float = 0.0


def judge_kselftest(done: subprocess.CompletedProcess[str]) -> str:
    results = RESULT.findall(done.stdout)
    bad = [line for line in done.stdout.splitlines() if line.startswith("not ok")]
    if bad or not results or done.returncode:
        return f"{len(bad)} of {len(results)} tests failed, exit status {done.returncode}\n{done.stdout[-4000:]}"
    return ""


# What a guest must not have seen, in churn's and first_nested's report
NEVER = ("holes", "guest_holes", "errors", "shutdowns", "torn", "torn_across", "wrong", "stale", "nested_errors", "bad")


def judge_guests(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode:
        return f"exit status {done.returncode}\n{done.stderr[-2000:]}"
    report = json.loads(done.stdout)
    seen = {name: report[name] for name in NEVER if report.get(name)}
    return f"guests saw what they must not: {seen}" if seen else ""


def judge_boots(done: subprocess.CompletedProcess[str]) -> str:
    outcomes = [json.loads(line)["outcome"] for line in done.stdout.splitlines()]
    if done.returncode or not outcomes or set(outcomes) != {"finished"}:
        return f"boots: {outcomes}, exit status {done.returncode}\n{done.stderr[-2000:]}"
    return ""


def items(quick: bool) -> Iterator[Item]:
    """What is run, from what is quick and tells most to what takes long."""
    programs = subprocess.run(
        ["make", "--silent", "-C", str(PROJECT / "tests" / "kselftest"), "programs"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()
    for program in ("probe", "bind", "query") if quick else programs:
        yield Item(f"kselftest {program}", [str(BUILD / "kselftest" / program)], judge_kselftest)
    churn = [str(BUILD / "guests" / "churn"), "--transactions", "8" if quick else "200"]
    cpus = len(os.sched_getaffinity(0))
    for vcpus in sorted({1, min(cpus, 64)} if quick else {1, 2, 4, 8, min(2 * cpus, 64)}):
        for parked in (False, True):
            name = f"guests, {vcpus} vCPUs, {'parked' if parked else 'fenced'}"
            yield Item(name, [*churn, "--vcpus", str(vcpus), *(["--park"] if parked else [])], judge_guests)
    if quick:
        return
    for nested in ("shared", "own"):
        yield Item(f"guests in guests ({nested} tables)", [*churn, "--vcpus", "2", "--nested", nested], judge_guests)
    for removal in ("delete", "shrink", "move"):
        first_nested = [str(BUILD / "guests" / "first_nested"), removal, "20", "4"]
        yield Item(f"first nested guest while memory goes ({removal})", first_nested, judge_guests)
    if shutil.which("qemu-system-x86_64"):
        boots = [str(PROJECT / "tests" / "system" / "boots.py"), "--boots", "10"]
        boots += ["--memslot-run", str(BUILD / "tools" / "memslot-run")]
        yield Item("this machine's QEMU boots under memslot-run", boots, judge_boots)


class KernelLog:
    """What the kernel says from now on."""

    def __init__(self) -> None:
        self._file = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._file, 0, os.SEEK_END)

    def read(self) -> list[str]:
        """The lines since the last look."""
        lines: list[str] = []
        while True:
            try:
                record = os.read(self._file, 8192)
            except BlockingIOError:
                return lines
            except BrokenPipeError:  # some were lost
                continue
            lines.append(record.decode(errors="replace").partition(";")[2].partition("\n")[0])


def run(item: Item, log: KernelLog) -> Verdict:
    log.read()
    start = time.monotonic()
    try:
        done = subprocess.run(item.command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        outcome, text = ("skipped", done.stderr.strip()) if done.returncode == NOT_IN_THIS_KVM else ("", item.judge(done))
    except subprocess.TimeoutExpired:
        outcome, text = "failed", f"not done after {TIMEOUT} s"
    except (OSError, ValueError, KeyError) as error:
        outcome, text = "failed", str(error)
    said = log.read()
    if any(map(COMPLAINT.search, said)):
        outcome, text = "failed", f"the kernel complained\n{text}"
    outcome = outcome or ("failed" if text else "passed")
    return Verdict(item.name, outcome, text, said if outcome == "failed" else [], time.monotonic() - start)


def running_vms(besides: int | None) -> list[str]:
    """The processes that have a virtual machine, but for this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(besides):
            continue
        try:
            links = [os.readlink(fd) for fd in (process / "fd").iterdir()]
            if "anon_inode:kvm-vm" in links:
                found.append(f"{process.name} ({(process / 'comm').read_text().strip()})")
        except OSError:  # it has ended
            continue
    return found


def is_loaded(module: str) -> bool:
    return Path(f"/sys/module/{module}").exists()


def check(module: Path, besides: int | None) -> None:
    """CannotTest unless this machine can be tested now."""
    if os.geteuid():
        raise CannotTest("only root can load a module: run it as root")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise CannotTest("there is no /dev/kvm: load kvm_amd or kvm_intel, or switch virtualization on in the firmware's settings")
    if not module.exists():
        raise CannotTest(f"{module} does not exist: run make hw-test, with the headers of this kernel ({platform.release()}) installed")
    if is_loaded("memslot"):
        raise CannotTest("memslot is loaded already: rmmod memslot first, so that what is tested is what was just built")
    if vms := running_vms(besides):
        raise CannotTest(f"virtual machines are running, which a bug could take down: end them first: {', '.join(vms)}")


def machine() -> list[str]:
    """What a reader of the report has to know of the machine."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    facts = [f"kernel: {platform.release()} ({platform.version()})"]
    for name in ("vendor_id", "model name", "stepping", "microcode"):
        if match := re.search(rf"^{name}\s*: (.*)$", cpuinfo, re.M):
            facts.append(f"{name}: {match[1]}")
    hypervisor = "yes" if re.search(r"^flags.*\bhypervisor\b", cpuinfo, re.M) else "no"
    facts.append(f"processors: {len(os.sched_getaffinity(0))}; in a virtual machine itself: {hypervisor}")
    for name, parameters in PARAMETERS.items():
        for parameter in parameters:
            path = Path(f"/sys/module/{name}/parameters/{parameter}")
            if path.exists():
                facts.append(f"{name}.{parameter}: {path.read_text().strip()}")
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=PROJECT, capture_output=True, text=True, check=False)
    facts.append(f"memslot: {git.stdout.strip() or 'not from git'}")
    return facts


def consent(yes: bool, module: Path) -> None:
    print(
        f"This loads {module}\ninto the kernel that this machine runs now ({platform.release()}), starts virtual machines and changes"
        " their memory.\nA bug in it can crash the machine: save what you have open."
    )
    if yes:
        return
    if not sys.stdin.isatty():
        raise CannotTest("nobody is there to be asked: --yes goes on without")
    if input('Type "yes" to go on: ').strip() != "yes":
        raise CannotTest("not without a yes")


def test(module: Path, wanted: list[Item]) -> list[Verdict]:
    """Loads the module, runs all, and unloads it."""
    log = KernelLog()
    subprocess.run(["insmod", str(module)], check=True)
    verdicts = []
    try:
        for number, item in enumerate(wanted, 1):
            print(f"[{number:2}/{len(wanted)}] {item.name} ", end="", flush=True)
            verdicts.append(run(item, log))
            print(f"{verdicts[-1].outcome}, {verdicts[-1].seconds:.1f} s", flush=True)
    finally:
        unloaded = subprocess.run(["rmmod", "memslot"], capture_output=True, text=True, check=False)
    said = log.read()
    gone = not unloaded.returncode and not DEVICE.exists() and not any(map(COMPLAINT.search, said))
    verdicts.append(Verdict("unloading", "passed" if gone else "failed", unloaded.stderr.strip(), [] if gone else said))
    return verdicts


def write(path: Path, facts: list[str], verdicts: list[Verdict]) -> None:
    lines = ["memslot on real hardware", "", *facts, ""]
    for verdict in verdicts:
        lines.append(f"{verdict.outcome:8} {verdict.name} ({verdict.seconds:.1f} s)")
        lines += [f"    {line}" for text in (verdict.text, *verdict.log) for line in text.splitlines()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", type=Path, required=True, help="the memslot.ko to load, built for this kernel")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--quick", action="store_true", help="a minute's worth")
    parser.add_argument("--besides", type=int, metavar="PID", help="a process whose virtual machines do not count")
    parser.add_argument("--report", type=Path, default=REPORT, help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        check(arguments.module, arguments.besides)
        consent(arguments.yes, arguments.module)
        verdicts = test(arguments.module, list(items(arguments.quick)))
    except CannotTest as why:
        print(f"hw-test: {why}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"hw-test: {error}; dmesg says why", file=sys.stderr)
        return 1
    write(arguments.report, machine(), verdicts)
    failed = sum(verdict.outcome == "failed" for verdict in verdicts)
    print(f"{len(verdicts) - failed} of {len(verdicts)} went well; the report, to be sent with an issue, is {arguments.report}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
