# SPDX-License-Identifier: GPL-2.0
"""Debian's packages, downloaded into the project's cache; nothing of it is installed on the machine.

Debian's archive is often half published: for hours, sometimes for days, some packages of a new version are there and
others are not, and a mirror may change between two requests.  So what belongs together is taken by the packages' own
relations, the newest that is complete; and a download that fails begins again with new package lists.
"""

from __future__ import annotations

import fcntl
import functools
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import apt_pkg

PROJECT = Path(__file__).resolve().parents[1]
CACHE = PROJECT / ".cache"
SETUP = Path(__file__).resolve().parent / "setup"


class DebianError(Exception):
    """Something of Debian's cannot be had; the message says what to do."""


# The Debian that the default kernel and the roots are of.
HOST_SUITE = "bookworm"
# Debian 12's debian-archive-keyring has the keys of Debian 13, too.
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# How often something is asked of the archive, and the seconds in between.  A mirror's change takes moments, or hours.
ATTEMPTS = 4
PAUSE = 5.0
ADVICE = "Debian's archive, or this mirror, is probably being updated, which takes hours: try again later"


def release() -> str:
    """The Debian that this machine is."""
    return platform.freedesktop_os_release().get("VERSION_CODENAME", HOST_SUITE)


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


@contextmanager
def replacement(target: Path) -> Iterator[Path]:
    """A directory, not there yet, that takes a target's place when the block ends, and is gone if it fails.

    The caller holds the lock that all who make this target take.
    """
    prefix = f".{target.name}.new-"
    for left in target.parent.glob(prefix + "*"):  # by a process that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as directory:
        new = Path(directory) / "new"
        yield new
        if target.exists():
            # Never half of it under its name
            target.rename(Path(directory) / "old")
        new.chmod(0o755)
        new.rename(target)


def output(command: Sequence[str], cwd: Path | None = None) -> str:
    """What a command prints; DebianError if it fails."""
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        # debootstrap says on its standard output what is wrong
        said = done.stderr.strip() or "\n".join(done.stdout.splitlines()[-5:])
        raise DebianError(f"{' '.join(command)}: exit status {done.returncode}\n{said}")
    return done.stdout


def _addresses() -> dict[str, str]:
    """Where the machine's own apt gets Debian from, and its updates for security (Debian-Security)."""
    only = ["Created-By: Packages", "Component: main", "Origin: Debian"]
    lines = output(["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", *only]).splitlines()
    found: dict[str, str] = {}
    for line in lines:
        label, _, address = line.rpartition(" ")
        found.setdefault(label, address)
    return found


@functools.cache
def mirrors() -> dict[str, str]:
    """The archives that the machine's own apt knows, by label: "Debian", perhaps "Debian-Security"."""
    found = _addresses()
    if "Debian" not in found:
        # apt does not say without package lists
        progress("apt-get update")
        output(["apt-get", "-qq", "update"])
        found = _addresses()
    if "Debian" not in found:
        raise DebianError("this machine's apt has no source of Debian: add one (deb http://deb.debian.org/debian ...)")
    return found


def sources(suites: Sequence[str], options: str = "", kind: str = "deb") -> str:
    """The sources.list for suites of Debian; updates for security only if this machine has a source of them."""
    labels = [(suite, "Debian-Security" if suite.endswith("-security") else "Debian") for suite in suites]
    lines = [f"{kind} {options}{mirrors()[label]} {suite} main\n" for suite, label in labels if label in mirrors()]
    return "".join(lines)


@dataclass(frozen=True)
class Offer:
    """Packages of the archive that belong together."""

    what: str
    packages: tuple[str, ...]  # name=version; none if it is not complete
    lacks: str = ""
    size: int = 0  # of the download, in bytes


class _Incomplete(Exception):
    """The archive does not have all that is asked for; the message says what is missing."""


def _compare(version: apt_pkg.Version | str) -> Any:
    """A key to sort by."""
    import apt_pkg

    return functools.cmp_to_key(apt_pkg.version_compare)(version if isinstance(version, str) else version.ver_str)


def newest_first(versions: Iterable[str]) -> list[str]:
    """Debian versions, without doubles."""
    return sorted(set(versions), key=_compare, reverse=True)


class Index:
    """Package lists, as apt reads them."""

    def __init__(self, cache: apt_pkg.Cache) -> None:
        self._cache = cache

    def matches(self, pattern: re.Pattern[str]) -> list[re.Match[str]]:
        """The names of packages."""
        found = (pattern.fullmatch(package.name) for package in self._cache.packages if package.has_versions)
        return [match for match in found if match]

    def versions(self, name: str) -> list[str]:
        """Those of a package, newest first."""
        return newest_first([version.ver_str for version in self._versions(name)])

    def _versions(self, name: str) -> list[apt_pkg.Version]:
        try:
            return self._cache[name].version_list
        except KeyError:
            return []

    def source_offers(self, name: str, pattern: str = ".*") -> list[Offer]:
        """The versions of a source package that match, newest first."""
        import apt_pkg

        found, records = [], apt_pkg.SourceRecords()
        while records.lookup(name):
            size = sum(file.size for file in records.files)
            if re.fullmatch(pattern, records.version):
                found.append(Offer(f"{name} {records.version}", (f"{name}={records.version}",), size=size))
        by_version = {offer.packages[0].partition("=")[2]: offer for offer in found}
        return [by_version[version] for version in newest_first(by_version)]

    def offer(self, what: str, wanted: Sequence[tuple[str, str]], parts: str) -> Offer:
        """Packages (name and version), and those that they depend on as far as their names match a pattern."""
        try:
            chosen = self._complete(wanted, re.compile(parts))
        except _Incomplete as error:
            return Offer(what, (), str(error))
        names = tuple(f"{version.parent_pkg.name}={version.ver_str}" for version in chosen)
        return Offer(what, names, size=sum(version.size for version in chosen))

    def _complete(self, wanted: Sequence[tuple[str, str]], parts: re.Pattern[str]) -> list[apt_pkg.Version]:
        # What is asked for of one package is an alternative, each of them of some package.
        Group = list["apt_pkg.Dependency"]
        missing: list[str] = []

        def groups(version: apt_pkg.Version) -> list[tuple[str, Group]]:
            name = version.parent_pkg.name
            every = [*version.depends_list.get("PreDepends", []), *version.depends_list.get("Depends", [])]
            return [(name, group) for group in every if any(parts.fullmatch(one.target_pkg.name) for one in group)]

        def solve(
            chosen: dict[str, apt_pkg.Version], todo: list[tuple[str, Group]]
        ) -> dict[str, apt_pkg.Version] | None:
            if not todo:
                return chosen
            (name, group), *rest = todo
            ours = [one for one in group if parts.fullmatch(one.target_pkg.name)]
            targets = [target for one in ours for target in sorted(one.all_targets(), key=_compare, reverse=True)]
            if any(chosen.get(target.parent_pkg.name) == target for target in targets):
                return solve(chosen, rest)
            for target in targets:
                other = target.parent_pkg.name
                if other not in chosen and (all_ := solve({**chosen, other: target}, [*rest, *groups(target)])):
                    return all_
            text = " | ".join(f"{one.target_pkg.name} {one.comp_type_deb} {one.target_ver}".strip() for one in ours)
            missing.append(f"{name} needs {text}")
            return None

        first: dict[str, apt_pkg.Version] = {}
        for name, number in wanted:
            match = [version for version in self._versions(name) if version.ver_str == number]
            if not match:
                raise _Incomplete(f"there is no {name} {number}")
            first[name] = match[0]
        found = solve(first, [group for version in first.values() for group in groups(version)])
        if found is None:
            raise _Incomplete(missing[0])
        return list(found.values())


def _reason(error: DebianError) -> str:
    """One line of an error of several: apt's first, else the last."""
    lines = str(error).splitlines()
    return next((line[3:] for line in lines if line.startswith("E: ")), lines[-1])


class Apt:
    """The packages of Debian's suites, by an apt configuration of the project's own: the machine's is left as it is."""

    kind = "deb"

    def __init__(self, *suites: str) -> None:
        self._suites = suites
        self._all = CACHE / "apt"
        self._own = self._all / "+".join(suites if self.kind == "deb" else (self.kind, *suites))

    def _settings(self) -> dict[str, str]:
        return {
            "Dir::Etc::sourcelist": f"{self._own}/sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::Etc::preferencesparts": "-",
            "Dir::State::lists": f"{self._all}/lists/",
            "APT::Get::List-Cleanup": "false",  # others have theirs there
            "Dir::State::status": "/dev/null",
            "Dir::Cache": str(self._own),
            "Acquire::Languages": "none",
            # fetch() tries again, with new lists
            "Acquire::Retries": "1",
            # Else a list that cannot be had is a warning
            "APT::Update::Error-Mode": "any",
            # Else apt warns that its own user may not write here
            "APT::Sandbox::User": "root",
        }

    def _run(self, *arguments: str, cwd: Path | None = None) -> None:
        options = [word for name, value in self._settings().items() for word in ("-o", f"{name}={value}")]
        output(["apt-get", "-qq", *options, *arguments], cwd)

    def _configure(self) -> None:
        for directory in (self._all / "lists", self._own / "archives"):
            (directory / "partial").mkdir(parents=True, exist_ok=True)
        lines = sources(self._suites, f"[arch=amd64 signed-by={KEYRING}] ", self.kind)
        (self._own / "sources.list").write_text(lines)

    def index(self) -> Index:
        """What the package lists say; there may be none."""
        # Not before setup_host(), which installs it
        import apt_pkg

        apt_pkg.init_config()
        apt_pkg.init_system()
        for name, value in self._settings().items():
            apt_pkg.config.set(name, value)
        try:
            return Index(apt_pkg.Cache(None))
        except apt_pkg.Error as error:
            raise DebianError(f"the package lists in {self._all} cannot be read: {error}") from None

    def _unpack(self, offer: Offer, into: Path) -> None:
        """Downloads packages, all of them, then unpacks them below a new directory."""
        with tempfile.TemporaryDirectory(dir=into.parent, prefix=".debs-") as directory:
            self._run("download", *offer.packages, cwd=Path(directory))
            into.mkdir()
            for deb in sorted(Path(directory).glob("*.deb")):
                output(["dpkg", "-x", str(deb), str(into)])

    def fetch(self, what: str, choose: Callable[[Index], list[Offer]], into: Path, advice: str = ADVICE) -> Offer:
        """Unpacks the first of the offers, best first, that is complete and can be downloaded, below a new directory.

        Says in a line why it is not the best.  What is offered may change with every attempt.
        """
        setup_host()
        failures: Counter[str] = Counter()
        refused: dict[str, str] = {}
        stale = ""
        with locked(self._all):
            self._configure()
            for attempt in range(ATTEMPTS):
                if attempt:
                    time.sleep(PAUSE)
                try:
                    stale = ""
                    self._run("update")
                except DebianError as error:
                    stale = _reason(error)
                    progress(f"apt-get update failed ({stale})")
                offers = choose(self.index())
                left = [offer for offer in offers if offer.packages and failures[offer.what] < ATTEMPTS // 2]
                if not left:
                    if stale:
                        continue
                    break
                best = left[0]
                progress(f"{what}: downloading {best.what}, {best.size / 1e6:.0f} MB")
                try:
                    self._unpack(best, into)
                except DebianError as error:
                    failures[best.what] += 1
                    refused[best.what] = _reason(error)
                    progress(f"{best.what} cannot be downloaded ({refused[best.what]})")
                    continue
                if best != offers[0]:
                    why = refused.get(offers[0].what, offers[0].lacks)
                    progress(f"{what} is {best.what}, because {offers[0].what} cannot be had: {why}")
                return best
        reasons = [f"{offer.what}: {refused.get(offer.what, offer.lacks)}" for offer in offers]
        if stale:
            reasons.append(f"apt-get update: {stale}")
        text = "\n".join(f"  {reason}" for reason in reasons) or "  nothing of that name is there"
        raise DebianError(f"{what} cannot be had from Debian's {' and '.join(self._suites)}:\n{text}\n{advice}")


class SourceApt(Apt):
    """The same for source packages; a new directory has their files, with Debian's patches."""

    kind = "deb-src"

    def _unpack(self, offer: Offer, into: Path) -> None:
        with tempfile.TemporaryDirectory(dir=into.parent, prefix=".source-") as directory:
            self._run("source", "--download-only", *offer.packages, cwd=Path(directory))
            (description,) = Path(directory).glob("*.dsc")
            # apt has held what it downloaded against the archive's signed lists
            output(["dpkg-source", "--no-check", "-x", str(description), str(into)])


def patiently(what: str, action: Callable[[], object]) -> None:
    """Does something that asks the archive, again if it fails: a mirror may be changing."""
    for attempt in range(ATTEMPTS):
        try:
            action()
            return
        except DebianError as error:
            if attempt == ATTEMPTS - 1:
                raise DebianError(f"{what}: {error}\n{ADVICE}") from None
            progress(f"{what} failed ({_reason(error)}), once more")
            time.sleep(PAUSE)


def debootstrap(root: Path, suite: str, *options: str) -> None:
    """Makes a Debian root.  In a mount namespace of its own: debootstrap can leave the root's /proc mounted."""
    command = ["debootstrap", *options, suite, str(root), mirrors()["Debian"]]

    def bootstrap() -> None:
        shutil.rmtree(root, ignore_errors=True)
        output(["unshare", "--mount", "--propagation", "private", *command])

    patiently(f"debootstrap of {suite}", bootstrap)
