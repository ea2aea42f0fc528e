# SPDX-License-Identifier: GPL-2.0
"""Debian's packages, downloaded into the project's cache; nothing of it is installed on the machine."""

from __future__ import annotations

import fcntl
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PROJECT = Path(__file__).resolve().parents[2]
CACHE = PROJECT / ".cache"
SETUP = Path(__file__).resolve().parent / "setup"


class DebianError(Exception):
    """Something of Debian's cannot be had; the message says what to do."""


# The Debian that all this runs on.
HOST_SUITE = "bookworm"
# Debian 12's debian-archive-keyring has the keys of Debian 13, too.
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def progress(text: str) -> None:
    print(f"memslot: {text}", file=sys.stderr, flush=True)


def setup_host() -> None:
    """Installs the host packages that are missing."""
    if subprocess.run([str(SETUP)], check=False).returncode:
        raise DebianError("host packages are missing, see above")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def output(command: Sequence[str], cwd: Path | None = None) -> str:
    """What a command prints; DebianError if it fails."""
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise DebianError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr.strip()}")
    return done.stdout


def _apt_options(suite: str) -> list[str]:
    """An apt configuration of the project's own: the machine's is left as it is."""
    own = CACHE / "apt" / suite
    (own / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (own / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    sources = own / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n")
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "Dir::Etc::preferencesparts": "-",
        "Dir::State::lists": own / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": own,
        "APT::Sandbox::User": "root",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def mirror(suite: str = HOST_SUITE) -> str:
    """Where the machine's own apt gets a suite of Debian from."""
    only = ["Created-By: Packages", f"Release: {suite}", "Component: main"]

    def find() -> str:
        # says nothing without package lists
        addresses = output(["apt-get", "indextargets", "--format", "$(REPO_URI)", *only]).split()
        if not addresses:
            raise DebianError(f"apt has no source of Debian {suite}; is this Debian 12?")
        return addresses[0]

    return Apt().with_update(find)


class Apt:
    """Looks packages up and downloads them."""

    def __init__(self, suite: str | None = None) -> None:
        """suite: one of Debian's; None: wherever the machine's own apt gets its packages."""
        self._options = _apt_options(suite) if suite else []

    def _run(self, tool: str, *arguments: str, cwd: Path | None = None) -> str:
        return output([tool, *self._options, *arguments], cwd)

    def with_update(self, action: Callable[[], T]) -> T:
        """What the action returns; if it fails, the package lists may be missing or too old."""
        try:
            return action()
        except DebianError:
            progress("apt-get update")
            self._run("apt-get", "-qq", "update")
            return action()

    def records(self, package: str) -> list[dict[str, str]]:
        """The known versions of a package, best first."""
        text = self._run("apt-cache", "show", package)
        return [dict(re.findall(r"^([\w-]+): (.*)$", record, re.M)) for record in text.split("\n\n") if record.strip()]

    def download(self, names: Sequence[str], into: Path) -> list[Path]:
        # Else apt warns that its own user may not write here.
        self._run("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *names, cwd=into)
        return sorted(into.glob("*.deb"))

    def unpack(self, names: Sequence[str], into: Path) -> None:
        """Downloads packages, all of them, then unpacks them below a directory."""
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into.parent, prefix=".debs-") as directory:
            for deb in self.download(names, Path(directory)):
                output(["dpkg", "-x", str(deb), str(into)])


def debootstrap(root: Path, suite: str, *options: str) -> None:
    """Makes a Debian root.  In a mount namespace of its own: debootstrap can leave the root's /proc mounted."""
    command = ["debootstrap", *options, suite, str(root), mirror()]
    output(["unshare", "--mount", "--propagation", "private", *command])
