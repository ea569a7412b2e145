"""Debian packages without root and without touching this system's: a private apt state.

apt resolves and verifies, dpkg-deb unpacks; no maintainer script runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from guest.closing import Closing
from guest.errors import VhostPciError
from tools.lab.commands import require, run

if TYPE_CHECKING:
    from collections.abc import Sequence

SUITE = "trixie"
BACKPORTS = "trixie-backports"

_ARCHIVES, _CONFIGURED = "archives", "apt.conf"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_DEFAULT_MIRROR = "http://deb.debian.org/debian"
_MIRROR = re.compile(r"(?:https?|file|copy)://[^\s\]]*/debian/?(?=\s|$)")

# apt.conf(5). The sandbox user cannot enter a private directory, and is only there for root.
_CONFIGURATION = """\
Dir::State "{here}/state";
Dir::State::status "{here}/status";
Dir::Cache "{here}/cache";
Dir::Cache::archives "{archives}";
Dir::Etc "{here}/etc";
Dir::Etc::sourcelist "{here}/etc/sources.list";
Dir::Log "{here}/log";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
"""


def mirror(etc: Path = Path("/etc/apt")) -> str:
    """The mirror of Debian proper that this machine's apt uses; Debian's own if none is found."""
    files = [etc / "sources.list"]
    for pattern in ("*.list", "*.sources"):
        files += sorted((etc / "sources.list.d").glob(pattern))
    for file in files:
        if not file.is_file():
            continue
        for line in file.read_text(errors="replace").splitlines():
            found = _MIRROR.search(line.partition("#")[0])
            if found:
                return found.group().rstrip("/")
    return _DEFAULT_MIRROR


class Packages(Closing):
    """Debian's packages, by lists that are fetched once, when the first package is.

    A context manager that removes them. Thread rule: one thread.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._here: Path | None = None

    def unpack(
        self, packages: Sequence[str], root: Path, suite: str = SUITE, only: str = ""
    ) -> None:
        """Download packages with all they depend on, and unpack them into root.

        Args:
            packages: Names. They and what they depend on may come from backports if suite says so.
            root: An existing directory.
            suite: SUITE or BACKPORTS.
            only: Unpack just the packages whose name begins so.

        Raises:
            VhostPciError: apt or dpkg-deb is missing or fails, or there is no keyring.
        """
        here = self._fetched()
        environment = _environment(here)
        install = ["apt-get", "-q", "-y", "--download-only", "-t", suite, "install", *packages]
        run("fetch", ", ".join(packages), install, environment)
        archives = here / _ARCHIVES
        files = sorted(file for file in archives.glob("*.deb") if file.name.startswith(only))
        for file in files:
            run("unpack", file.name, ["dpkg-deb", "-x", str(file), str(root)], environment)
        for file in archives.glob("*.deb"):
            file.unlink()

    def _fetched(self) -> Path:
        """Where the lists are."""
        if self._here is None:
            require("apt-get", "dpkg-deb")
            if not _KEYRING.exists():
                remedy = "install debian-archive-keyring"
                cause = f"there is no {_KEYRING}"
                raise VhostPciError("fetch", "Debian packages", cause, remedy)
            temporary = tempfile.TemporaryDirectory(prefix="vhost-pci-lab-apt-")
            here = Path(self._stack.enter_context(temporary))
            _write_state(here)
            run("fetch", "Debian's package lists", ["apt-get", "-q", "update"], _environment(here))
            self._here = here
        return self._here

    def close(self) -> None:
        """Twice is fine."""
        self._here = None
        self._stack.close()


def _write_state(here: Path) -> None:
    """An empty system below here; the configuration file that makes apt look there."""
    archives = here / _ARCHIVES
    for directory in (
        here / "state" / "lists" / "partial",
        here / "etc" / "apt.conf.d",
        here / "etc" / "preferences.d",
        here / "etc" / "sources.list.d",
        here / "etc" / "trusted.gpg.d",
        here / "cache",
        here / "log",
        archives / "partial",
    ):
        directory.mkdir(parents=True)
    (here / "status").touch()
    source = mirror()
    (here / "etc" / "sources.list").write_text(
        "".join(
            f"deb [signed-by={_KEYRING}] {source} {suite} main\n" for suite in (SUITE, BACKPORTS)
        )
    )
    (here / _CONFIGURED).write_text(_CONFIGURATION.format(here=here, archives=archives))


def _environment(here: Path) -> dict[str, str]:
    configuration = {"APT_CONFIG": str(here / _CONFIGURED)}
    return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", **configuration}
