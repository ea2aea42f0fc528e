# SPDX-License-Identifier: GPL-2.0
"""Fixtures for tests that need a VM with the module loaded."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / folder) for folder in ("scripts", "vmtest")]

from building import BUILD  # noqa: E402
from kernels import KERNELS  # noqa: E402
from runner import DEFAULT_KERNEL, VENDORS, VM, Outcome, Result  # noqa: E402

DEFAULT_VENDOR = next(iter(VENDORS))

# Tests start makes of their own: what the make that started pytest was told is not for them.
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"):
    os.environ.pop(name, None)


def duration(text: str) -> float:
    """Seconds: 90s, 30m, 2h."""
    return float(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]


def pytest_addoption(parser: pytest.Parser) -> None:
    def add(option: str, choices: Iterable[str], text: str) -> None:
        parser.addoption(option, choices=list(choices), action="append", default=[], help=text)

    add("--kernel", KERNELS, f"kernel of the test VM, may be given several times (default: {DEFAULT_KERNEL})")
    add("--brief-kernel", KERNELS, "the same, but for the tests only that are marked every_kernel")
    add("--vendor", VENDORS, f"whose virtualization the test VM has, may be given several times (default: {DEFAULT_VENDOR})")
    add("--brief-vendor", VENDORS, "the same, but for the tests only that are marked every_vendor")
    parser.addoption("--all", action="store_true", help="every machine that QEMU can be run as, and all that brief vendors can; takes hours")
    parser.addoption("--soak", type=duration, default="10s", help="how long test_soak lasts; default: %(default)s")


MARKERS = (
    "every_kernel: runs on the kernels of --brief-kernel, too",
    "races: threads meet in the module; make test-debug runs it on a kernel that looks for races",
    "every_vendor: runs on the vendors of --brief-vendor, too",
    "every_machine: runs even on the kernels of --brief-kernel with the vendors of --brief-vendor",
    "by_parameters: whether it is every_kernel, every_vendor or every_machine, its parameters' marks say",
    "any_vendor: can run on all vendors of --vendor; what is not marked is for AMD, or for a VM that sees the host's files",
    "configured(vendor=[parameters...]): runs once with each of these parameters of KVM, on the vendors that are named",
)
CAN_RUN_ON_ANY = ("any_vendor", "every_vendor", "every_machine")


class Teller:
    """Names a test as soon as it fails: the summary comes at the end, which a run that is stopped may not reach."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal:
            terminal.write_line(f"\nfailed: {report.nodeid}")


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    # Workers tell the process that started them
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Teller(config))


def is_marked(item: pytest.Item, marks: Sequence[str]) -> bool:
    """Whether it has one of the marks, if any is asked for."""
    return not marks or any(map(item.get_closest_marker, marks))


class Wanted:
    """The machines that the command line asks for."""

    def __init__(self, config: pytest.Config) -> None:
        self.kernels: list[str] = config.getoption("--kernel") or [DEFAULT_KERNEL]
        self.brief_kernels: list[str] = config.getoption("--brief-kernel")
        self.vendors: list[str] = config.getoption("--vendor") or [DEFAULT_VENDOR]
        self.brief_vendors: list[str] = config.getoption("--brief-vendor")
        self.brief_is_all: bool = config.getoption("--all")

    def marks(self, kernel: str, vendor: str) -> tuple[str, ...]:
        """One of these a test must be marked with to run on a machine; none: every test does."""
        if vendor in self.vendors:
            return () if kernel in self.kernels else ("every_kernel",)
        if kernel in self.kernels:
            return ("every_vendor", "any_vendor") if self.brief_is_all else ("every_vendor",)
        return ("every_machine",)

    def machines(self, definition: pytest.Item, vendors: Iterable[str]) -> list[tuple[str, str]]:
        """The kernels and vendors that a test is for, or some of its parameters are."""
        kernels = dict.fromkeys(self.kernels + self.brief_kernels)
        by_parameters = definition.get_closest_marker("by_parameters") is not None
        return [
            (kernel, vendor)
            for kernel in kernels
            for vendor in vendors
            if by_parameters or is_marked(definition, self.marks(kernel, vendor))
        ]

    @property
    def all_vendors(self) -> list[str]:
        return list(dict.fromkeys(self.vendors + self.brief_vendors))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What needs a VM runs on each kernel and vendor that is asked for, and on one machine after the other."""
    names = [name for name in ("kernel_version", "vendor", "kvm") if name in metafunc.fixturenames]
    if not names:
        return
    wanted, definition = Wanted(metafunc.config), metafunc.definition
    configured = definition.get_closest_marker("configured")
    machines = [
        {"kernel_version": kernel, "vendor": vendor, "kvm": kvm}
        for kernel, vendor in wanted.machines(definition, wanted.all_vendors if "vendor" in names else wanted.vendors[:1])
        for kvm in (configured.kwargs.get(vendor, []) if configured else [""])
    ]
    # Of machines that differ in what the test does not ask for, one is enough
    chosen = list(dict.fromkeys(tuple(machine[name] for name in names) for machine in machines))
    ids = ["-".join(filter(None, machine)) for machine in chosen]
    metafunc.parametrize(names, chosen, indirect=True, scope="session", ids=ids)


# What VM a test needs: parameters of test functions
VM_PARAMETERS = ("kernel_version", "vendor", "kvm")


# Before pytest-xdist's own, which looks for the groups
@pytest.hookimpl(tryfirst=True)  # type: ignore[misc]
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out parameters of tests that are not for every machine, and skips what others than AMD's cannot do.

    Of several workers (the Makefile says how many) one runs all tests of a file that share a VM.
    """
    wanted = Wanted(config)
    kept = []
    for item in items:
        parameters: dict[str, str] = getattr(item, "callspec").params if hasattr(item, "callspec") else {}
        if "vendor" in parameters:
            # Where there is no machine for a test, pytest has an item without parameters
            if not isinstance(parameters["vendor"], str):
                continue
            if not is_marked(item, wanted.marks(parameters.get("kernel_version", wanted.kernels[0]), parameters["vendor"])):
                continue
            if parameters["vendor"] != DEFAULT_VENDOR and not is_marked(item, CAN_RUN_ON_ANY):
                item.add_marker(pytest.mark.skip(reason=f"is for {DEFAULT_VENDOR}'s virtualization, or a VM that sees the host's files"))
        group = [item.path.stem, *(parameters[name] for name in VM_PARAMETERS if name in parameters)]
        item.add_marker(pytest.mark.xdist_group(" ".join(group)))
        kept.append(item)
    items[:] = kept


@pytest.fixture(scope="session")
def kernel_version(request: pytest.FixtureRequest) -> str:
    """The kernel of the test VM."""
    version: str = request.param
    return version


@pytest.fixture(scope="session")
def vendor(request: pytest.FixtureRequest) -> str:
    """Whose virtualization the test VM has."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def kvm(request: pytest.FixtureRequest) -> str:
    """KVM's parameters in the test VM."""
    parameters: str = request.param
    return parameters


@pytest.fixture(scope="session")
def session_vm(kernel_version: str, vendor: str, kvm: str) -> Iterator[VM]:
    """One VM for all tests, with KVM and the module loaded.  Tests take vm instead, which watches the kernel log."""
    with VM(kernel_version, module=True, vendor=vendor, kvm=kvm) as machine:
        yield machine


@contextmanager
def watched(machine: VM) -> Iterator[VM]:
    """A test during which a VM's kernel log gets a warning fails, whatever else it does."""
    machine.start()
    machine.complaints.clear()
    boots = machine.boots
    yield machine
    # What the kernel says a moment after the test's last command still belongs to that test.
    after = machine.run("true")
    if machine.complaints:
        pytest.fail("the VM's kernel log has warnings:\n" + "\n".join(machine.complaints), pytrace=False)
    if after.outcome is not Outcome.OK or machine.boots != boots:
        pytest.fail(f"the VM was lost during the test\n{after.report()}", pytrace=False)


@pytest.fixture
def vm(session_vm: VM) -> Iterator[VM]:
    """The VM, watched."""
    with watched(session_vm):
        yield session_vm


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of a test's own that the VM sees, too: its /tmp is its own."""
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD, prefix="test-") as path:
        yield Path(path)


@pytest.fixture
def run_in_vm(vm: VM) -> Callable[..., Result]:
    """Runs a command in the VM, with VM.run()'s arguments; the test fails with its output if the command does."""

    def run(*command: str | os.PathLike[str], **options: object) -> Result:
        result = vm.run(*command, **options)  # type: ignore[arg-type]
        if result.outcome is not Outcome.OK:
            pytest.fail(result.report(), pytrace=False)
        return result

    return run
