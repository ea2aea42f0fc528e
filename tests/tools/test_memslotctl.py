# SPDX-License-Identifier: GPL-2.0
"""memslotctl: what it says of the module, of layouts that are known, of commits, and of what is missing."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from building import BUILD, make
from debian import PROJECT
from runner import VM, Result

VERSION = re.findall(r'^PACKAGE_VERSION="(.*)"$', (PROJECT / "dkms.conf").read_text(), re.M)[0]
SOURCES = PROJECT / "tools" / "memslotctl"
SCENARIOS = 6  # of churn
# Processes that see each other and nobody else: the test VM's agent has two idle VMs of its own
ALONE: list[str | Path] = ["unshare", "--pid", "--fork", "--mount-proc"]
MEMSLOTCTL = BUILD / "tools" / "memslotctl"
HOLDER = Path(__file__).with_name("holder.py")
MTREE = Path(__file__).with_name("mtree.py")

Run = Callable[..., Result]

# Exit statuses, see the man page
WRONG_USAGE, NOT_THERE, NO_RIGHTS, NO_PROCESS, NO_VM = 2, 3, 4, 5, 6

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
LOG_DIRTY, READONLY = 1, 2

AS_NOBODY = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]


def slot(number: int, gpa: int, size: int, flags: int = 0, space: int = 0) -> dict[str, int]:
    return {"slot": number, "address_space": space, "guest_phys_addr": gpa, "memory_size": size, "flags": flags}


# Not in the order of addresses
KNOWN = [
    [
        slot(2, 4 * GIB, 3 * GIB // 2),
        slot(0, 0, 640 * KIB),
        slot(7, 4 * GIB - 4 * KIB, 4 * KIB, READONLY),
        slot(32763, 640 * KIB, 64 * KIB, LOG_DIRTY),
        slot(5, 1 * MIB, 2 * MIB, space=1),
    ],
    [slot(1, 1 << 39, 12 * KIB, READONLY | LOG_DIRTY)],
]

KNOWN_TABLE = """\
VM 0 of process {pid} (holder.py), file descriptor {fd}

Address space 0, generation {generation}: 4 slots, 1.5 GiB

   SLOT  FIRST        LAST            SIZE  FLAGS
      0  0x000000000  0x00009ffff  640 KiB  -
  32763  0x0000a0000  0x0000affff   64 KiB  dirty log
      7  0x0fffff000  0x0ffffffff    4 KiB  read-only
      2  0x100000000  0x15fffffff  1.5 GiB  -
"""


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    make(PROJECT / "tools" / "memslot-run", "all")
    make(SOURCES, "all", BUILD / "tools" / "test_memslotctl")
    make(PROJECT / "tests" / "guests")
    make(PROJECT / "userlib", "vm-tests")


def on_host(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([MEMSLOTCTL, *arguments], capture_output=True, text=True, timeout=600, check=False)


def refused(vm: VM, status: int, *command: str | Path, **options: Any) -> str:
    """What a command says that must end with this status; nothing but one line."""
    result = vm.run(*command, **options)
    assert result.status == status, result.report()
    assert result.stdout == ""
    assert re.fullmatch(r"memslotctl: .+\n", result.stderr)
    return result.stderr


def known(run_in_vm: Run, *options: str, layouts: Any = None, **more: Any) -> str:
    """What memslotctl list says of a process whose layouts are known."""
    holder = [HOLDER, json.dumps(KNOWN if layouts is None else layouts)]
    return run_in_vm(*holder, MEMSLOTCTL, "list", "PID", *options, **more).stdout


def expected(slots: list[dict[str, int]], space: int) -> list[dict[str, Any]]:
    """What the JSON must say of an address space; the host's addresses belong to another process."""
    return [
        {
            "slot": each["slot"],
            "guest_phys_addr": each["guest_phys_addr"],
            "memory_size": each["memory_size"],
            "userspace_addr": None,
            "log_dirty_pages": bool(each["flags"] & LOG_DIRTY),
            "readonly": bool(each["flags"] & READONLY),
            "guest_memfd": False,
        }
        for each in sorted(slots, key=lambda one: one["guest_phys_addr"])
        if each["address_space"] == space
    ]


# Without the module


def test_unit() -> None:
    done = subprocess.run([BUILD / "tools" / "test_memslotctl"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["none"],
        ["info", "more"],
        ["list", "--vm", "0"],
        ["list", "--json", "--svg", "-"],
        ["list", "1", "--json", "--svg", "-"],
        ["list", "1", "2"],
        ["list", "0"],
        ["list", "-1"],
        ["list", "1x"],
        ["list", "99999999999"],
        ["list", "1", "--vm"],
        ["list", "1", "--vm", "x"],
        ["list", "1", "--unknown"],
        ["list", "1", "--json=x"],
        ["list", "1", "-xy"],
        ["list", "1", "--svg", ""],
        ["watch", "1", "2"],
        ["watch", "--json"],
        ["info", "--svg", "file"],
    ],
    ids=lambda words: " ".join(words) or "nothing",
)
def test_wrong_usage(arguments: list[str]) -> None:
    done = on_host(*arguments)
    assert done.returncode == WRONG_USAGE
    assert done.stdout == ""
    assert re.fullmatch(r"memslotctl: .*(; |\nmemslotctl: )see memslotctl --help\n", done.stderr)


def test_help_and_man_page_agree() -> None:
    done = on_host("--help")
    assert done.returncode == 0 and done.stderr == ""
    page = (SOURCES / "memslotctl.1").read_text()
    options = re.findall(r"--([a-z-]+)", done.stdout)
    assert len(set(options)) == 6
    for option in options:
        entry = ".Fl" if option in ("help", "version") else ".It Fl"
        assert f"{entry} \\-" + option.replace("-", "\\-") in page
    for command in ("info", "list", "watch"):
        assert re.search(rf"^  {command}\b", done.stdout, re.M)
        assert f".It Cm {command}" in page
    statuses = re.findall(r"^\t(\w+) = (\d),$", (SOURCES / "command.hpp").read_text(), re.M)
    assert [number for _, number in statuses] == re.findall(r"^\.It (\d)$", page, re.M) != []


def test_json_and_svg_on_one_output(tmp_path: Path) -> None:
    """Standard output has other names, too."""
    output = tmp_path / "output"
    with output.open("w") as file:
        for name in ("/dev/stdout", "/proc/self/fd/1", str(output)):
            command: list[str | Path] = [MEMSLOTCTL, "list", "--json", "--svg", name]
            done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
            assert done.returncode == WRONG_USAGE
            assert "--json and --svg cannot both go to standard output" in done.stderr
    assert output.read_text() == ""


TOOLS = ["memslotctl", "memslot-run"]


@pytest.mark.parametrize("tool", TOOLS)
def test_version(tool: str) -> None:
    done = subprocess.run([BUILD / "tools" / tool, "--version"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tool} {VERSION}\n", "")


# Its arguments: a completion, then the words of a command line, of which the last one is being completed.
COMPLETE = """
source "$1"
shift
read -r _ _ function _ < <(complete -p "$1")
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
"$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completion(tool: str, shell: str) -> Path:
    return PROJECT / "tools" / tool / f"{tool}.{shell}"


def completed(tool: str, *words: str, cwd: Path = PROJECT) -> set[str]:
    """What bash makes of a command line."""
    command: list[str | Path] = ["bash", "-uc", COMPLETE, "bash", completion(tool, "bash"), tool, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return set(done.stdout.split())


def test_bash_completes_memslotctl(tmp_path: Path) -> None:
    (tmp_path / "memory.svg").touch()
    assert completed("memslotctl", "") == {"info", "list", "watch"}
    assert completed("memslotctl", "li") == {"list"}
    assert completed("memslotctl", "--v") == {"--version"}
    assert completed("memslotctl", "list", "--") == {"--vm", "--address-space", "--json", "--svg"}
    assert completed("memslotctl", "list", "1", "--j") == {"--json"}
    assert completed("memslotctl", "list", "1", "--address-space", "") == {"0", "1"}
    assert completed("memslotctl", "list", "1", "--svg", "mem", cwd=tmp_path) == {"memory.svg"}
    assert completed("memslotctl", "list", "1", "--vm", "") == set()
    assert completed("memslotctl", "info", "") == set()


def test_bash_completes_memslot_run(tmp_path: Path) -> None:
    (tmp_path / "stats.json").touch()
    options = {"--stats", "--stats=", "--help", "--version", "--"}
    assert completed("memslot-run", "-") == options
    assert completed("memslot-run", "--stats", "--ver") == {"--version"}
    assert completed("memslot-run", "unshar") == {"unshare"}
    assert completed("memslot-run", "--stats", "--", "unshar") == {"unshare"}
    # bash takes it apart at the =
    assert completed("memslot-run", "--stats", "=", cwd=tmp_path) == {"stats.json"}
    assert completed("memslot-run", "--stats", "=", "sta", cwd=tmp_path) == {"stats.json"}
    assert completed("memslot-run", "--stats", "=", "x", "unshar") == {"unshare"}
    # Options of the command are the command's
    assert completed("memslot-run", "true", "-") == set()
    assert completed("memslot-run", "true", "sta", cwd=tmp_path) == {"stats.json"}


def test_bash_completes_processes_with_a_vm(run_in_vm: Run) -> None:
    words = [completion("memslotctl", "bash"), "memslotctl", "watch", ""]
    command = ["/bin/sh", "-c", 'echo $1; shift; exec bash -uc "$@"', "sh", "PID", COMPLETE, "bash", *words]
    pid, *offered = run_in_vm(*ALONE, HOLDER, json.dumps(KNOWN), *command).stdout.split()
    assert offered == [pid]


# What a user's own zsh reads when it starts
ZSHRC = """
unsetopt zle_bracketed_paste
fpath=({folder} $fpath)
autoload -U compinit
compinit -u -D
[[ ${{_comps[{tool}]}} = _{tool} ]] || exit 1
PS1=ready
"""

# Types a command line and TAB, and ends when the line has become what it should.  Keys that arrive while
# zsh sets its terminal up are lost, so that it waits for the prompt.
ZSH = """
zmodload zsh/zpty
zpty shell zsh -d -i
zpty -r -m shell heard '*ready*'
zpty -w -n shell "$1"$'\t'
zpty -r -m shell heard "*$2*"
"""


@pytest.mark.parametrize(
    ("tool", "typed", "wanted"),
    [("memslotctl", "memslotctl inf", "info"), ("memslot-run", "memslot-run --vers", "--version")],
)
def test_zsh_completes(tool: str, typed: str, wanted: str, tmp_path: Path) -> None:
    (tmp_path / f"_{tool}").write_text(completion(tool, "zsh").read_text())
    (tmp_path / ".zshrc").write_text(ZSHRC.format(folder=shlex.quote(str(tmp_path)), tool=tool))
    command: list[str | Path] = ["zsh", "-f", "-e", "-c", ZSH, "zsh", typed, wanted]
    environment = os.environ | {"ZDOTDIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("tool", TOOLS)
def test_completions_know_every_option(tool: str) -> None:
    told = subprocess.run([BUILD / "tools" / tool, "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    options = set(re.findall(r"--[a-z][a-z-]+", told))
    for shell in ("bash", "zsh"):
        text = completion(tool, shell).read_text()
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text.replace("}", " "))) - {"--stats-"} | {"--stats"} & options == options


def test_without_module(vm: VM) -> None:
    """All three, and with tracefs gone the third one again."""
    try:
        assert vm.run("rmmod", "memslot").status == 0
        for command in (["info"], ["list", "1"], ["list"], ["watch"]):
            assert "modprobe memslot" in refused(vm, NOT_THERE, MEMSLOTCTL, *command)
        assert vm.run("ls", "/sys/kernel/tracing/instances").stdout == ""
    finally:
        assert vm.run("insmod", vm.module_path).status == 0
    told = refused(
        vm, NOT_THERE, "unshare", "--mount", "/bin/sh", "-c", 'umount /sys/kernel/tracing && exec "$@"', "sh", MEMSLOTCTL, "watch"
    )
    assert "mount -t tracefs" in told


def test_without_rights(vm: VM) -> None:
    assert "group" in refused(vm, NO_RIGHTS, *AS_NOBODY, MEMSLOTCTL, "info")
    assert "root" in refused(vm, NO_RIGHTS, *AS_NOBODY, MEMSLOTCTL, "watch")
    # Who may use the device may not yet look into other users' processes
    assert vm.run("chmod", "666", "/dev/memslot").status == 0
    try:
        assert vm.run(*AS_NOBODY, MEMSLOTCTL, "info").status == 0
        told = refused(vm, NO_RIGHTS, HOLDER, json.dumps(KNOWN), *AS_NOBODY, MEMSLOTCTL, "list", "PID")
        assert "CAP_SYS_PTRACE" in told
    finally:
        assert vm.run("chmod", "660", "/dev/memslot").status == 0


HIDEPID = 'mount -o remount,hidepid=$1 /proc && shift && exec "$@"'


@pytest.mark.parametrize("hidepid", ["1", "2"])
def test_with_hidepid(vm: VM, hidepid: str) -> None:
    """A process that /proc does not show is there, and so is one whose files it does not show."""
    assert vm.run("chmod", "666", "/dev/memslot").status == 0
    hidden: list[str | Path] = ["/bin/sh", "-c", HIDEPID, "sh", hidepid, *AS_NOBODY]
    try:
        told = refused(vm, NO_RIGHTS, HOLDER, json.dumps(KNOWN), *hidden, MEMSLOTCTL, "list", "PID")
        assert "no rights to look into process" in told and "CAP_SYS_PTRACE" in told
        assert "there is no process" in refused(vm, NO_PROCESS, *hidden, MEMSLOTCTL, "list", "4194304")
    finally:
        assert vm.run("mount", "-o", "remount,hidepid=0", "/proc").status == 0
        assert vm.run("chmod", "660", "/dev/memslot").status == 0


def test_list_of_a_thread(run_in_vm: Run, vm: VM) -> None:
    process = """if True:
        import os, subprocess, sys, threading

        def live():
            done = subprocess.run([*sys.argv[1:], str(threading.get_native_id())])
            os._exit(done.returncode)

        threading.Thread(target=live).start()
    """
    assert "is a thread" in refused(vm, NO_PROCESS, "python3", "-c", process, MEMSLOTCTL, "list")


# info, list


def test_info(run_in_vm: Run) -> None:
    told = run_in_vm(MEMSLOTCTL, "info").stdout
    assert len(re.findall(r"^  yes  ", told, re.M)) == 6 + 2
    assert not re.search(r"^  no ", told, re.M)
    assert "slot ids        0 ... 32763, in each address space" in told
    assert "16384 in one batch" in told


def test_list_as_json(run_in_vm: Run) -> None:
    told = json.loads(known(run_in_vm, "--json"))
    assert told["name"] == "holder.py"
    assert told["pid"] > 1
    assert [vm["vm"] for vm in told["vms"]] == [0, 1]
    # Two descriptors of one VM are one VM
    assert len(told["vms"][0]["fds"]) == 1
    assert told["vms"][1]["fds"] == [told["vms"][0]["fds"][0] + 1, 100]
    for vm, slots in zip(told["vms"], KNOWN, strict=True):
        assert [space["address_space"] for space in vm["address_spaces"]] == [0, 1]
        for space in vm["address_spaces"]:
            assert space["slots"] == expected(slots, space["address_space"])
    # KVM raises it with every call
    spaces = told["vms"][0]["address_spaces"]
    assert spaces[0]["generation"] > spaces[1]["generation"] > 0


def test_list_as_table(run_in_vm: Run) -> None:
    told = known(run_in_vm, "--vm", "0", "--address-space", "0", env={"TERM": "xterm"})
    pid, fd = re.findall(r"^VM 0 of process (\d+) \(holder.py\), file descriptor (\d+)$", told, re.M)[0]
    (generation,) = re.findall(r"generation (\d+):", told)
    table, picture = re.split(r"\n\n(?= +0x0 )", told)
    assert table + "\n" == KNOWN_TABLE.format(pid=pid, fd=fd, generation=generation)
    # Each slot once, each gap once
    assert re.findall(r"slot (\d+)", picture) == ["0", "32763", "7", "2"]
    assert len(re.findall(r"┊ .* gap$", picture, re.M)) == 1
    assert "\033" not in told


def test_list_chooses(run_in_vm: Run) -> None:
    told = json.loads(known(run_in_vm, "--json", "--vm", "1", "--address-space", "1"))
    assert [vm["vm"] for vm in told["vms"]] == [1]
    assert [space["address_space"] for space in told["vms"][0]["address_spaces"]] == [1]
    assert told["vms"][0]["address_spaces"][0]["slots"] == []


def test_list_without_utf8(run_in_vm: Run) -> None:
    told = known(run_in_vm, env={"LC_ALL": "C"})
    assert told.isascii()
    assert "|#" in told and ": 4.0 GiB gap" in told


def test_list_on_a_terminal(run_in_vm: Run) -> None:
    """Colours there, unless they are not wanted; as wide as the terminal is."""
    inner = f"stty columns 120; {MEMSLOTCTL} list $PPID_OF_HOLDER --vm 1"
    command = ["/bin/sh", "-c", 'export PPID_OF_HOLDER=$1; exec script -qec "$2" /dev/null', "sh", "PID", inner]
    holder = [HOLDER, json.dumps(KNOWN)]
    told = run_in_vm(*holder, *command, env={"TERM": "xterm"}).stdout
    assert "\033[33m▒" in told
    (bar,) = re.findall(r"▕\033\[33m(▒+)\033\[0m", told)
    assert len(bar) > 80
    told = run_in_vm(*holder, *command, env={"TERM": "xterm", "NO_COLOR": "1"}).stdout
    assert "▕▒" in told and "\033" not in told


def holders(count: int, command: list[str | Path]) -> list[str | Path]:
    """A command that runs while that many processes have the known VMs."""
    for _ in range(count):
        command = [HOLDER, json.dumps(KNOWN), *command]
    return command


def test_list_of_all(run_in_vm: Run) -> None:
    """50 VMs in 25 processes, in one call: as a table, as JSON, as a picture."""
    script = '"$1" list --json && "$1" list && "$1" list --svg -'
    command: list[str | Path] = ["/bin/sh", "-c", script, "sh", MEMSLOTCTL]
    result = run_in_vm(*ALONE, *holders(25, command), timeout=300)
    assert result.stderr == ""
    listed, end, rest = result.stdout.partition("]}]}\n")
    processes = json.loads(listed + end)["processes"]
    assert len(processes) == 25
    assert [process["pid"] for process in processes] == sorted(process["pid"] for process in processes)
    for process in processes:
        assert process["name"] == "holder.py"
        for vm, slots in zip(process["vms"], KNOWN, strict=True):
            for space in vm["address_spaces"]:
                assert space["slots"] == expected(slots, space["address_space"])

    table, start, picture = rest.partition("<?xml")
    header, *lines = [line.split() for line in table.splitlines()]
    assert header == ["PID", "NAME", "VM", "DESCRIPTORS", "SPACE", "GENERATION", "SLOTS", "SIZE"]
    wanted = []
    for process in processes:
        for vm in process["vms"]:
            for space in vm["address_spaces"]:
                count = len(space["slots"])
                if count or not space["address_space"]:
                    fds = ",".join(map(str, vm["fds"]))
                    wanted.append([str(process["pid"]), "holder.py", str(vm["vm"]), fds, str(space["address_space"]),
                                   str(space["generation"]), str(count)])  # fmt: skip
    assert [line[:7] for line in lines] == wanted
    assert len(lines) == 25 * 3 and lines[0][7:] == ["1.5", "GiB"]
    rects = ElementTree.fromstring((start + picture).encode()).findall("{http://www.w3.org/2000/svg}rect")
    assert len(rects) == 25 * sum(map(len, KNOWN))


def test_list_of_all_that_one_may_see(vm: VM) -> None:
    """No VM is no error; that there may be more than one sees is said."""
    nothing = vm.run(*ALONE, MEMSLOTCTL, "list", "--json")
    assert nothing.status == 0 and json.loads(nothing.stdout) == {"processes": []}
    assert nothing.stderr == "memslotctl: no process has a KVM virtual machine\n"
    assert vm.run("chmod", "666", "/dev/memslot").status == 0
    try:
        hidden = vm.run(HOLDER, json.dumps(KNOWN), *AS_NOBODY, MEMSLOTCTL, "list")
        assert hidden.status == 0 and hidden.stdout == ""
        assert "no process that you may look into has a KVM virtual machine; root may" in hidden.stderr
    finally:
        assert vm.run("chmod", "660", "/dev/memslot").status == 0


def test_list_as_svg(run_in_vm: Run) -> None:
    drawn = known(run_in_vm, "--svg", "-")
    root = ElementTree.fromstring(drawn.encode())
    space = "{http://www.w3.org/2000/svg}"
    rects = root.findall(f"{space}rect")
    assert root.tag == f"{space}svg"
    assert len(rects) == sum(len(slots) for slots in KNOWN)
    titles = [rect.findtext(f"{space}title") for rect in rects]
    assert "slot 7: 0xfffff000 ... 0xffffffff, 4 KiB, read-only" in titles
    for one, other in zip(rects, rects[1:], strict=False):
        if one.get("x") == other.get("x"):
            assert int(one.attrib["y"]) + int(one.attrib["height"]) <= int(other.attrib["y"])
    # Nothing outside of the page, nothing from elsewhere
    for rect in rects:
        assert int(rect.attrib["x"]) + int(rect.attrib["width"]) <= int(root.attrib["width"])
        assert int(rect.attrib["y"]) + int(rect.attrib["height"]) <= int(root.attrib["height"])
    assert "href" not in drawn and "url(" not in drawn


def test_list_writes_svg_to_a_file(run_in_vm: Run) -> None:
    script = f'{MEMSLOTCTL} list "$1" --svg /tmp/memory.svg > /dev/null && cat /tmp/memory.svg'
    drawn = run_in_vm(HOLDER, json.dumps(KNOWN), "/bin/sh", "-c", script, "sh", "PID").stdout
    assert ElementTree.fromstring(drawn.encode()).tag.endswith("}svg")


def test_list_of_a_strange_name(run_in_vm: Run) -> None:
    """A process may call itself anything, and must not get at terminals and parsers by that."""
    script = """
	name=/tmp/$(printf 'a\\033[31m"<\\\\&\\377')
	cp "$1" "$name"
	exec "$name" "$2" "$3" list PID $4
    """
    outputs = []
    for options in ("", "--json", "--svg -"):
        command = [script, "sh", HOLDER, json.dumps(KNOWN), MEMSLOTCTL, options]
        outputs.append(run_in_vm("/bin/sh", "-c", *command).stdout)
    table, listed, drawn = outputs
    name = 'a?[31m"<\\&?'
    assert f"({name})" in table and "\033" not in table
    assert json.loads(listed)["name"] == name
    texts = [each.text or "" for each in ElementTree.fromstring(drawn.encode()).iter()]
    assert any(f"({name})" in text for text in texts)


def test_list_of_many_slots(run_in_vm: Run) -> None:
    slots = [slot(i, i * 8 * KIB, 4 * KIB) for i in range(1000)]
    told = json.loads(known(run_in_vm, "--json", layouts=[slots]))
    assert told["vms"][0]["address_spaces"][0]["slots"] == expected(slots, 0)


def test_list_of_what_is_not_there(vm: VM) -> None:
    holder: list[str | Path] = [HOLDER, json.dumps(KNOWN), MEMSLOTCTL, "list", "PID"]
    assert "there is no process" in refused(vm, NO_PROCESS, MEMSLOTCTL, "list", "4194304")
    assert "no KVM virtual machine" in refused(vm, NO_VM, HOLDER, "[[]]", "/bin/sh", "-c", f"exec {MEMSLOTCTL} list $$")
    assert "2 VMs" in refused(vm, NO_VM, *holder, "--vm", "2")
    assert "2 address spaces" in refused(vm, NO_VM, *holder, "--address-space", "2")
    result = vm.run(*holder, "--svg", "/nonexistent/file")
    assert result.status == 1 and "No such file" in result.stderr
    assert refused(vm, NO_PROCESS, MEMSLOTCTL, "watch", "4194304")


def test_list_of_stock_qemu(run_in_vm: Run) -> None:
    """The module tells KVM's slots; QEMU tells what it gave to KVM."""
    result = json.loads(run_in_vm(MTREE, MEMSLOTCTL, "list", "PID", "--json", timeout=180).stdout)
    (vm,) = json.loads(result["told"])["vms"]
    for space, name in zip(vm["address_spaces"], ["memory", "KVM-SMRAM"], strict=True):
        slots = space["slots"]
        ranges = [(each["guest_phys_addr"], each["guest_phys_addr"] + each["memory_size"] - 1) for each in slots]
        wanted = result["maps"][name]
        assert ranges == [(first, last) for first, last, _ in wanted]
        assert len(ranges) > 4
        for each, (_, _, what) in zip(slots, wanted, strict=True):
            assert each["readonly"] == (what == "pc.bios")
            assert each["log_dirty_pages"] == (what == "vga.vram")


# watch

# Its arguments: memslotctl, a PID or nothing, a command.  Prints what was seen and what the command said.
WATCH = """
set -e
"$1" watch $2 > /tmp/seen 2> /tmp/heard & watcher=$!
shift 2
tries=0
until grep -q watching /tmp/heard; do
	sleep 0.05
	tries=$((tries + 1))
	[ $tries -lt 4000 ]
done
"$@" > /tmp/said
kill -TERM $watcher
wait $watcher
[ -z "$(ls /sys/kernel/tracing/instances)" ]
cat /tmp/seen
echo
cat /tmp/said
cat /tmp/heard >&2
"""
LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{6}  vm (\d+)  (.*)")


def watched(run_in_vm: Run, *command: str | Path) -> tuple[list[str], str]:
    """The commits that a watch sees while a command runs, and what the command said."""
    result = run_in_vm("/bin/sh", "-c", WATCH, "sh", MEMSLOTCTL, "", *command)
    seen, said = result.stdout.split("\n\n", 1) if not result.stdout.startswith("\n") else ("", result.stdout[1:])
    lines = seen.splitlines()
    assert result.stderr.endswith(f"memslotctl: {len(lines)} commit{'' if len(lines) == 1 else 's'}\n")
    assert all(LINE.fullmatch(line) for line in lines), seen
    return lines, said


def total(lines: list[str], what: str) -> int:
    """The sum of a count."""
    return sum(int(number) for line in lines for number in re.findall(rf"\b(\d+) {what}\b", line))


@pytest.mark.parametrize("options", [[], ["--park"]], ids=["fenced", "parked"])
def test_watch_counts(run_in_vm: Run, options: list[str]) -> None:
    churn: list[str | Path] = [BUILD / "guests" / "churn", "--transactions", "7", "--scenario", "all", *options]
    lines, said = watched(run_in_vm, *churn)
    report = json.loads(said)
    assert len(lines) == report["transactions"] == 7 * SCENARIOS
    for what in ("created", "deleted", "replaced", "moved"):
        assert total(lines, what) == report[what] > 0
    assert sum("; fence; " in line for line in lines) == report["fenced"]
    assert sum("; park (parking was requested); " in line for line in lines) == report["parked"]
    fenced = [float(number) for line in lines for number in re.findall(r", fenced (\d+\.\d+) ms$", line)]
    took = [float(number) for line in lines for number in re.findall(r"; (\d+\.\d+) ms, fenced", line)]
    assert len(fenced) == len(took) == len(lines)
    assert sum(fenced) == pytest.approx(report["total_ns_fenced"] / 1e6, abs=0.001 * len(lines))
    assert all(short <= long + 0.002 for short, long in zip(fenced, took, strict=True))
    assert sum("; 2 grace periods; " in line for line in lines) == report["grace_periods"] - len(lines)
    # All of a scenario's range changes, or half of it
    assert total(lines, "remapped") > 0 < total(lines, "kept")
    assert len({LINE.fullmatch(line)[1] for line in lines}) == 1  # type: ignore[index]


def test_watch_tells_errors(run_in_vm: Run) -> None:
    """What the wrapper's own test provokes."""
    lines, _ = watched(run_in_vm, BUILD / "userlib" / "vm")
    assert sum("1 entry: failed: Stale file handle: the layout has changed since" in line for line in lines) == 2
    assert sum("failed: Invalid argument, entry 1: there is no last dirty bitmap" in line for line in lines) == 1
    assert sum("test only: 1 entry: 2 deleted, 1 replaced; fence; " in line and "; 2 grace periods; " in line for line in lines) == 1
    assert sum("600 entries: 600 created; fence; pages: 600 added" in line for line in lines) == 1
    assert any("nothing changed" in line for line in lines)


GLOBAL_OPTIONS = {
    "latency-format": "1", "context-info": "0", "raw": "1", "hex": "1", "bin": "1", "fields": "1", "verbose": "1",
    "stacktrace": "1", "userstacktrace": "1", "record-tgid": "1", "irq-info": "0", "annotate": "0", "overwrite": "0",
}  # fmt: skip


@pytest.mark.every_kernel
@pytest.mark.parametrize("option", [*GLOBAL_OPTIONS, "all"])
def test_watch_whatever_the_trace_options_are(vm: VM, run_in_vm: Run, option: str) -> None:
    """They are everybody's, a new instance has them, and the watch leaves them as they are."""
    names = list(GLOBAL_OPTIONS) if option == "all" else [option]
    listing = vm.run("ls", "/sys/kernel/tracing/options").stdout.split()
    names = [name for name in names if name in listing]
    assert names or option == "fields", f"the kernel has no trace option {option}"
    script = 'cd /sys/kernel/tracing/options && for each; do printf %s "${each#*=}" > "${each%=*}" || exit; done'
    changed = [f"{name}={GLOBAL_OPTIONS[name]}" for name in names]
    before = vm.run("cat", "/sys/kernel/tracing/trace_options").stdout
    run_in_vm("/bin/sh", "-c", script, "sh", *changed)
    try:
        during = vm.run("cat", "/sys/kernel/tracing/trace_options").stdout
        assert (during != before) == bool(names)
        lines, said = watched(run_in_vm, BUILD / "guests" / "churn", "--transactions", "3", "--scenario", "all")
        assert len(lines) == json.loads(said)["transactions"] == 3 * SCENARIOS
        assert all("; fence; " in line or "; park" in line for line in lines)
        assert vm.run("cat", "/sys/kernel/tracing/trace_options").stdout == during
    finally:
        back = [f"{name}={1 - int(GLOBAL_OPTIONS[name])}" for name in names]
        run_in_vm("/bin/sh", "-c", script, "sh", *back)
    assert vm.run("cat", "/sys/kernel/tracing/trace_options").stdout == before


def test_watch_refuses_what_it_cannot_understand(vm: VM) -> None:
    """Somebody changes the instance while it is watched."""
    script = """
	"$1" watch > /tmp/seen 2> /tmp/heard & watcher=$!
	until grep -q watching /tmp/heard; do sleep 0.05; done
	echo 1 > /sys/kernel/tracing/instances/memslotctl-$watcher/options/raw
	"$2" --transactions 3 > /tmp/said
	wait $watcher
	status=$?
	ls /sys/kernel/tracing/instances
	tail -n 1 /tmp/heard >&2
	exit $status
    """
    told = refused(vm, 1, "/bin/sh", "-c", script, "sh", MEMSLOTCTL, BUILD / "guests" / "churn")
    assert "cannot understand this line of the trace: " in told


def test_watch_sees_nothing(run_in_vm: Run) -> None:
    assert watched(run_in_vm, "echo", "nothing") == ([], "nothing\n")


def test_watch_of_one_process(run_in_vm: Run) -> None:
    """Another one's commits are left out, and the end of the process is the end of the watch."""
    script = """
	set -e
	"$2" --transactions 1000000 > /dev/null 2>&1 & one=$!
	"$1" watch $one > /tmp/seen & watcher=$!
	until [ "$(wc -l < /tmp/seen)" -gt 3 ]; do sleep 0.05; done
	"$2" --transactions 3 > /tmp/other
	kill $one
	wait $watcher
	[ -z "$(ls /sys/kernel/tracing/instances)" ]
	echo $one
	cat /tmp/seen
    """
    result = run_in_vm("/bin/sh", "-c", script, "sh", MEMSLOTCTL, BUILD / "guests" / "churn")
    pid, *lines = result.stdout.splitlines()
    assert len(lines) > 3
    assert {LINE.fullmatch(line)[1] for line in lines} == {pid}  # type: ignore[index]
    assert "or the process ends" in result.stderr


def test_watch_knows_a_thread_that_ended(run_in_vm: Run) -> None:
    """A thread creates the VM, commits nothing to it and ends, and so does the process."""
    process = """if True:
        import fcntl, os, struct, sys, threading

        def live():
            print(threading.get_native_id(), flush=True)
            sys.stdin.readline()
            vm = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), 0xAE01, 0)
            dev = os.open("/dev/memslot", os.O_RDWR)
            fcntl.ioctl(dev, 0xB901, struct.pack("IIiIII", 24, 0, vm, 0, 0, 0))
            fcntl.ioctl(dev, 0xB903, struct.pack("I", 144).ljust(144, bytes(1)))

        thread = threading.Thread(target=live)
        thread.start()
        thread.join()
    """
    script = """
	set -e
	mkfifo /tmp/go
	python3 -c "$2" < /tmp/go > /tmp/thread & one=$!
	exec 3> /tmp/go
	until [ -s /tmp/thread ]; do sleep 0.05; done
	"$1" watch $one > /tmp/seen 2> /tmp/heard & watcher=$!
	until grep -q watching /tmp/heard; do sleep 0.05; done
	echo >&3
	wait $watcher
	cat /tmp/thread /tmp/seen
    """
    thread, line = run_in_vm("/bin/sh", "-c", script, "sh", MEMSLOTCTL, process).stdout.splitlines()
    assert LINE.fullmatch(line)[1] == thread  # type: ignore[index]


def test_watch_that_cannot_write(vm: VM) -> None:
    script = """
	"$2" --transactions 1000000 > /dev/null 2>&1 & churn=$!
	"$1" watch > /dev/full 2> /tmp/heard
	status=$?
	kill $churn
	tail -n 1 /tmp/heard >&2
	exit $status
    """
    churn = BUILD / "guests" / "churn"
    assert "No space left" in refused(vm, 1, "/bin/sh", "-c", script, "sh", MEMSLOTCTL, churn, timeout=60)


def test_watch_disturbs_nobody(run_in_vm: Run) -> None:
    """Neither other tracing, nor when it is killed: the next one cleans up."""
    script = """
	set -e
	cd /sys/kernel/tracing
	state() { cat set_event trace_clock tracing_on buffer_size_kb; cat events/memslot/enable; }
	echo 1 > events/memslot/memslot_commit_end/enable
	state > /tmp/before
	"$1" watch 2> /tmp/heard & watcher=$!
	until grep -q watching /tmp/heard; do sleep 0.05; done
	state > /tmp/during
	ls instances
	kill -KILL $watcher
	wait $watcher || true
	"$1" watch 2> /tmp/heard2 & watcher=$!
	until grep -q watching /tmp/heard2; do sleep 0.05; done
	ls instances
	kill -INT $watcher
	wait $watcher
	state > /tmp/after
	echo 0 > events/memslot/memslot_commit_end/enable
	cmp /tmp/before /tmp/during
	cmp /tmp/before /tmp/after
	echo left: $(ls instances)
    """
    told = run_in_vm("/bin/sh", "-c", script, "sh", MEMSLOTCTL).stdout.splitlines()
    assert len(told) == 3
    assert told[0].startswith("memslotctl-") and told[1].startswith("memslotctl-")
    assert told[0] != told[1]
    assert told[2] == "left:"


def test_watch_ends_with_its_reader(run_in_vm: Run) -> None:
    script = """
	"$2" --transactions 1000000 > /dev/null 2>&1 & churn=$!
	"$1" watch | head -n 1
	kill $churn
	echo left: $(ls /sys/kernel/tracing/instances)
    """
    told = run_in_vm("/bin/sh", "-c", script, "sh", MEMSLOTCTL, BUILD / "guests" / "churn", timeout=60).stdout.splitlines()
    assert len(told) == 2
    assert LINE.fullmatch(told[0]) and told[1] == "left:"
