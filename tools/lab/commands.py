"""Commands of this machine that the lab runs: checked to be there, and their words if they fail."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from guest.errors import VhostPciError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PACKAGES = {"apt-get": "apt", "dpkg-deb": "dpkg", "setpriv": "util-linux"}
_TIMEOUT_S = 1800.0


def require(*commands: str) -> None:
    """VhostPciError, naming all at once, unless these commands are installed."""
    missing = [command for command in commands if shutil.which(command) is None]
    if missing:
        packages = " ".join(_PACKAGES.get(command, command) for command in missing)
        cause = f"this machine has no {', '.join(missing)}"
        raise VhostPciError("make", "the lab", cause, f"install {packages} (the lab needs Debian)")


def run(
    operation: str, subject: str, command: Sequence[str], environment: Mapping[str, str]
) -> str:
    """What the command prints, once it ended well.

    Args:
        operation: For the error, with subject: what it is run for.
        subject: As in VhostPciError.
        command: The argument list.
        environment: All of its environment.

    Raises:
        VhostPciError: It failed, or took half an hour; with the last line it wrote to stderr.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            env=dict(environment),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VhostPciError(operation, subject, f"{command[0]}: {error}") from error
    if done.returncode != 0:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if line.lower().startswith(("e:", "error"))] or said
        cause = errors[-1] if errors else f"exit status {done.returncode}"
        raise VhostPciError(operation, subject, f"{command[0]}: {cause}")
    return done.stdout
