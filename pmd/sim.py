"""`--device sim`: a device and an embedded VM1 as child processes, reached by vfio-user.

The children die with this process, whatever ends it. Their sockets live in a private directory,
which goes as soon as VM1 is connected.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path

from guest.errors import UsageError, VhostPciError, errno_text
from pmd.child import Child

_START_TIMEOUT_S = 20.0
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Parameters:
    """What `sim:KEY=VALUE,...` may set, with `_` for `-`.

    Attributes:
        size: Bytes of VM1's frames without FCS.
        queue_size: Descriptors a ring, a power of two.
        queue_pairs: VM1's queue pairs.
    """

    size: int = 64
    queue_size: int = 256
    queue_pairs: int = 1


_RANGES = {"size": (60, 9216), "queue_size": (2, 32768), "queue_pairs": (1, 16)}


def parameters(name: str) -> Parameters:
    """The parameters of a device name `sim` or `sim:KEY=VALUE,...`.

    Raises:
        UsageError: A key is unknown, or a value out of its range.
    """
    keys = [field.name for field in fields(Parameters)]
    values: dict[str, int] = {}
    for item in name.partition(":")[2].split(",") if ":" in name else ():
        key, _, text = item.partition("=")
        field = key.replace("-", "_")
        if field not in keys or "_" in key:
            known = ", ".join(known.replace("_", "-") for known in keys)
            raise UsageError("use", f"--device {name}", f"unknown key {key!r}", f"keys are {known}")
        least, most = _RANGES[field]
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            raise UsageError("use", f"--device {name}", f"{key} must be from {least} to {most}")
        values[field] = int(text)
    size = values.get("queue_size", 2)
    if size & (size - 1):
        raise UsageError("use", f"--device {name}", "queue-size must be a power of two")
    return Parameters(**values)


class Simulation:
    """A device and a VM1 that sends and receives as fast as it can. One thread.

    Args:
        wanted: What VM1 is like.
    """

    def __init__(self, wanted: Parameters) -> None:
        self._wanted = wanted
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._children: list[Child] = []

    @property
    def socket(self) -> str:
        """The device's vfio-user socket. Only between `start` and `hide`."""
        return str(self._path("vfio-user.sock"))

    def _path(self, name: str) -> Path:
        if self._directory is None:
            raise ValueError("the simulation has not started")
        return Path(self._directory.name) / name

    def start(self) -> None:
        """Start both; the device listens when this returns.

        Raises:
            VhostPciError: One of them ended, or the device does not listen in time. Nothing runs.
        """
        self._directory = tempfile.TemporaryDirectory(prefix="pmd-sim-")
        try:
            vhost_user = self._path("vhost-user.sock")
            pairs = ("--queue-pairs", str(self._wanted.queue_pairs))
            self._run(
                "device",
                *("tools.device.cli", "--vhost-user", str(vhost_user)),
                *("--vfio-user", self.socket, *pairs),
            )
            self._wait_for(vhost_user)
            self._wait_for(Path(self.socket))
            self._run(
                "vm1",
                *("tools.vm1.cli", "replay", "--vhost-user", str(vhost_user)),
                *("--direction", "both", "--size", str(self._wanted.size)),
                *("--queue-size", str(self._wanted.queue_size), *pairs),
            )
        except OSError as error:
            self.close()
            raise VhostPciError("start", "the simulation", errno_text(error)) from error
        except BaseException:
            self.close()
            raise

    def _run(self, name: str, *arguments: str) -> None:
        command = (sys.executable, "-m", *arguments)
        self._children.append(Child(f"the simulated {name}", command))

    def _wait_for(self, socket: Path) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not socket.is_socket():
            for child in self._children:
                child.check()
            if time.monotonic() > deadline:
                cause = f"it does not listen after {_START_TIMEOUT_S:g} s"
                raise VhostPciError("start", "the simulated device", cause)
            time.sleep(_LOOK_S)

    def hide(self) -> None:
        """Remove the sockets and logs from the file system; who is connected stays so."""
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def close(self) -> None:
        """Stop both, VM1 first, and leave nothing behind. Twice is fine."""
        while self._children:
            self._children.pop().close()
        self.hide()
