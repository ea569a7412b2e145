"""DPDK's testpmd as somebody else's driver, or as the peer: start, command, statistics, stop."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import tempfile
import time
import tty
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

PROMPT = b"testpmd> "
START_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class PortStats:
    """One port's counters since its start (`show port stats`)."""

    rx_packets: int
    rx_missed: int
    rx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_bytes: int


@dataclass(frozen=True, slots=True)
class ForwardStats:
    """What forwarding did between `start` and `stop`, summed over all ports."""

    rx_packets: int
    tx_packets: int
    tx_dropped: int


def virtio_user(
    path: Path,
    *,
    queue_pairs: int = 1,
    queue_size: int = 256,
    packed: bool = False,
    mergeable: bool = False,
    in_order: bool = False,
    vectorized: bool = False,
) -> str:
    """A --vdev for VM1's side: a virtio-net driver speaking vhost-user.

    vectorized: Where the processor and the other features allow it; split: to receive, neither in
    order nor mergeable; packed: with AVX512, in order, and to receive not mergeable.
    """
    return (
        f"net_virtio_user0,path={path},queues={queue_pairs},queue_size={queue_size},"
        f"packed_vq={int(packed)},mrg_rxbuf={int(mergeable)},in_order={int(in_order)},"
        f"vectorized={int(vectorized)}"
    )


class Testpmd:
    """An interactive testpmd on one CPU; a context manager.

    Memory is a memfd of DPDK's own (--no-huge), unless huge pages are asked for; its run-time
    files lie in a directory of its own, so any number may run. Every wait is bounded;
    a testpmd that dies or is silent fails the test with what it said.
    """

    __test__ = False  # a tool, not a test

    def __init__(
        self,
        devices: Sequence[str],
        *,
        cpu: int = 0,
        queue_pairs: int = 1,
        queue_size: int = 256,
        huge_pages: bool = False,
    ) -> None:
        self._said = b""
        self._directory = tempfile.TemporaryDirectory(prefix="testpmd-")
        self._terminal, their_terminal = pty.openpty()
        tty.setraw(their_terminal)
        command = ["dpdk-testpmd", "--lcores", f"0@{cpu},1@{cpu}", "--main-lcore", "0"]
        memory = ["--in-memory", "--single-file-segments"] if huge_pages else ["--no-huge"]
        command += ["--no-pci", "--no-telemetry", "-m", "256", *memory]
        # Without this DPDK keeps to 256 bits, which its packed vectorized paths do not.
        command += ["--force-max-simd-bitwidth=512", "--log-level=pmd.net.virtio.init:debug"]
        command += [f"--vdev={device}" for device in devices]
        command += ["--", "-i", "--nb-cores=1", "--burst=32"]
        # Its own wait for the link is one of nine seconds if the other side is not there yet.
        command += ["--no-lsc-interrupt", "--disable-link-check"]
        command += [f"--rxq={queue_pairs}", f"--txq={queue_pairs}"]
        command += [f"--rxd={queue_size}", f"--txd={queue_size}"]
        command += ["--total-num-mbufs=16384", "--mbcache=256"]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=their_terminal,
                stdout=their_terminal,
                stderr=their_terminal,
                env={**os.environ, "RUNTIME_DIRECTORY": self._directory.name},
            )
        except OSError:
            os.close(self._terminal)
            self._directory.cleanup()
            raise
        finally:
            os.close(their_terminal)
        try:
            self._read_to_prompt(START_TIMEOUT_S)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def said(self) -> str:
        """Everything testpmd has written so far."""
        return self._said.decode(errors="replace")

    def _read_to_prompt(self, timeout_s: float) -> str:
        begin = len(self._said)
        deadline = time.monotonic() + timeout_s
        while PROMPT not in self._said[begin:]:
            left_s = deadline - time.monotonic()
            readable, _, _ = select.select([self._terminal], [], [], max(left_s, 0))
            if not readable:
                message = f"testpmd was silent for {timeout_s} s after: {self.said[-2000:]}"
                raise TimeoutError(message)
            try:
                self._said += os.read(self._terminal, 65536)
            except OSError as error:  # EIO: the terminal has no other end any more
                raise RuntimeError(f"testpmd ended: {self.said[-2000:]}") from error
        return self._said[begin:].decode(errors="replace")

    @property
    def paths(self) -> tuple[str, ...]:
        """Which of its functions the driver has chosen to transmit and receive by, in its words."""
        return tuple(re.findall(r"virtio: using (.*) path on port 0", self.said))

    def command(self, line: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Types a line and returns what testpmd said until its next prompt."""
        os.write(self._terminal, line.encode() + b"\n")
        return self._read_to_prompt(timeout_s)

    def wait_for_link(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Returns once port 0's link is up: the other side of its rings is there."""
        deadline = time.monotonic() + timeout_s
        while "Link status: up" not in self.command("show port info 0"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"port 0 has no link after {timeout_s} s")

    def port_stats(self, port: int = 0) -> PortStats:
        """The port's counters now."""
        text = self.command(f"show port stats {port}")
        names = ["RX-packets", "RX-missed", "RX-bytes", "TX-packets", "TX-errors", "TX-bytes"]
        return PortStats(*(_number(name, text) for name in names))

    def start(self, mode: str, bursts_first: int = 0) -> None:
        """Forwards: "io", "rxonly", "txonly"; first sends so many bursts of 32 on each queue."""
        self.command(f"set fwd {mode}")
        self.command(f"start tx_first {bursts_first}" if bursts_first else "start")

    def stop_forwarding(self) -> ForwardStats:
        """Ends forwarding and returns what was done since start()."""
        text = self.command("stop")
        total = text[text.index("Accumulated forward statistics") :]
        names = ["RX-packets", "TX-packets", "TX-dropped"]
        return ForwardStats(*(_number(name, total) for name in names))

    def stop(self) -> None:
        """Ends testpmd, however it goes; stopping twice is fine."""
        if self._terminal < 0:
            return
        with contextlib.suppress(OSError):
            os.write(self._terminal, b"stop\nquit\n")
        self._drain_until_end(timeout_s=20)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._terminal)
        self._terminal = -1
        self._directory.cleanup()

    def _drain_until_end(self, timeout_s: float) -> None:
        """A testpmd whose words nobody reads would block in its last ones."""
        deadline = time.monotonic() + timeout_s
        while self._process.poll() is None and time.monotonic() < deadline:
            readable, _, _ = select.select([self._terminal], [], [], 0.1)
            if readable:
                try:
                    self._said += os.read(self._terminal, 65536)
                except OSError:
                    return


def _number(name: str, text: str) -> int:
    found = re.search(rf"{name}:\s*(\d+)", text)
    if found is None:
        raise ValueError(f"testpmd did not say {name}: {text}")
    return int(found.group(1))
