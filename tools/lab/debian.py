"""Debian packages without root and without touching this system's: a private apt state.

apt resolves and verifies, dpkg-deb unpacks; no maintainer script runs.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from guest.errors import VhostPciError
from tools.lab.commands import require, run

if TYPE_CHECKING:
    from collections.abc import Sequence

SUITE = "trixie"
BACKPORTS = "trixie-backports"

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


def unpack(packages: Sequence[str], root: Path, suite: str = SUITE, only: str = "") -> list[str]:
    """Download packages with all they depend on, and unpack them into root.

    Args:
        packages: Names. They and what they depend on may come from backports if suite says so.
        root: An existing directory.
        suite: SUITE or BACKPORTS.
        only: Unpack just the packages whose name begins so.

    Returns:
        The file names of what was unpacked, NAME_VERSION_ARCHITECTURE.deb, sorted.

    Raises:
        VhostPciError: apt or dpkg-deb is missing or fails, or there is no keyring.
    """
    require("apt-get", "dpkg-deb")
    if not _KEYRING.exists():
        remedy = "install debian-archive-keyring"
        raise VhostPciError("fetch", "Debian packages", f"there is no {_KEYRING}", remedy)
    with tempfile.TemporaryDirectory(prefix="vhost-pci-lab-apt-") as name:
        here = Path(name)
        archives = here / "archives"
        environment = {**_environment(), "APT_CONFIG": str(_write_state(here, archives))}
        what = ", ".join(packages)
        run("fetch", "Debian's package lists", ["apt-get", "-q", "update"], environment)
        install = ["apt-get", "-q", "-y", "--download-only", "-t", suite, "install", *packages]
        run("fetch", what, install, environment)
        files = sorted(file for file in archives.glob("*.deb") if file.name.startswith(only))
        for file in files:
            run("unpack", file.name, ["dpkg-deb", "-x", str(file), str(root)], environment)
        return [file.name for file in files]


def _write_state(here: Path, archives: Path) -> Path:
    """An empty system below here; the configuration file that makes apt look there."""
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
    configuration = here / "apt.conf"
    configuration.write_text(_CONFIGURATION.format(here=here, archives=archives))
    return configuration


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
