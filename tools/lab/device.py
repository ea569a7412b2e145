"""`vhost-pci-device` as the lab runs it, and what it tells."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guest.errors import VhostPciError
from tools.lab.child import Child

if TYPE_CHECKING:
    from collections.abc import Callable

_START_TIMEOUT_S = 60.0
_ANSWER_TIMEOUT_S = 10.0
_POLL_S = 0.1
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class Device(Child):
    """One device server.

    Args:
        name: Of its log, NAME.log.
        directory: Where that is.
        sockets: What their paths begin with. Those of a server that died are taken over.

    Raises:
        VhostPciError: It does not start.
    """

    def __init__(self, name: str, directory: Path, sockets: Path) -> None:
        self.vhost_user = sockets.with_suffix(".vhost-user")
        self.vfio_user = sockets.with_suffix(".vfio-user")
        self._control = sockets.with_suffix(".control")
        command = [sys.executable, "-m", "tools.device.cli", "--verbose"]
        command += ["--vhost-user", str(self.vhost_user), "--vfio-user", str(self.vfio_user)]
        command += ["--control", str(self._control)]
        path = [str(_PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
        super().__init__("vhost-pci-device", command, environment, directory / f"{name}.log")
        try:
            self.wait_until(self._answers, _START_TIMEOUT_S, "answer")
        except BaseException:
            self.close()
            raise

    def _answers(self) -> bool:
        """Whether it serves; a socket alone may be its predecessor's."""
        try:
            self.state()
        except VhostPciError:
            return False
        return True

    def state(self) -> dict[str, Any]:
        """What it says of itself.

        Raises:
            VhostPciError: It does not answer.
        """
        try:
            with socket.socket(socket.AF_UNIX) as asking:
                asking.settimeout(_ANSWER_TIMEOUT_S)
                asking.connect(str(self._control))
                with asking.makefile("rb") as answer:
                    state: dict[str, Any] = json.loads(answer.read())
        except (OSError, ValueError) as error:
            self.require_running()
            raise VhostPciError("ask", self.name, str(error)) from error
        return state

    def vm1_is_up(self) -> bool:
        """Whether VM1's driver has started a ring."""
        return any(ring["started"] for ring in self.state()["function"]["rings"])

    def is_served(self) -> bool:
        """Whether a driver in VM2 is active, and has set up what there is to serve."""
        function = self.state()["function"]
        settled = function["acknowledged"] == function["generation"]
        return bool(function["driver_status"] == "active" and settled)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Return once the condition holds; VhostPciError if it does not in time, or we ended.

        Args:
            condition: One of the questions above.
            timeout_s: How long that may take.
            what: What it would have done, for the error: "see ...".
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            self.require_running()
            if time.monotonic() > deadline:
                cause = f"it did not {what} within {timeout_s:g} s"
                raise VhostPciError("wait for", self.name, cause, f"see {self.log}")
            time.sleep(_POLL_S)
