"""`Vf` and `PortSpec`, and the VFs that need no device: null, loop, gen, pcap."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from driver.offloads import NO_OFFLOADS, Offloads
from guest.errors import VhostPciError, errno_text
from guest.named_tuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Mapping as ReadOnlyDict

    from driver.igbvf.queue import QueuePair
    from driver.software_vf.xdp import XdpQueues
    from driver.virtio_net.queue import VirtioPair
    from guest.mapping import Mapping

FRAME_BYTES_MIN = 60  # Ethernet's minimum, without FCS
FRAME_BYTES_MAX = 65562  # RK_FRAME_MAX of pmd/csrc/ringk.h


class PortSpec(NamedTuple):
    """What one queue pair's port is opened with: struct rk_port_config of pmd/csrc/ringk.h.

    fd belongs to whoever holds the PortSpec, until a port was opened with it: then to the port.
    -1: this kind has none. offloads: what may be left to the kernel behind it. igbvf and virtio are
    queue pairs of those kinds, xdp the queues of its own; their memory and descriptors stay the
    VF's.
    """

    kind: str
    fd: int = -1
    frame_bytes: int = 0
    input: str | None = None
    output: str | None = None
    offloads: Offloads = NO_OFFLOADS
    igbvf: QueuePair | None = None
    virtio: VirtioPair | None = None
    xdp: XdpQueues | None = None


class Vf(ABC):
    """A VF as the user named it. Nothing is open until `open`, which may be called again.

    Thread rule: one thread at a time.

    Args:
        spec: The user's words, for messages.

    Attributes:
        queue_pairs_max: How many it can have; None: any number.
        look_period_s: How often `look` is to be asked; None: never.
        opens_slowly: Opening takes seconds; it is better done before VM1 waits for it.
        one_lcore: What the VFs have alike whose channels one lcore is to run; None: any may.
        reads_vm1, writes_vm1: It can send from VM1's memory, and receive into it, by its own DMA.
        mode: How it was opened, in words, where there are several ways; else "".
    """

    kind: str
    queue_pairs_max: int | None = None
    look_period_s: float | None = None
    opens_slowly: bool = False
    one_lcore: str | None = None
    reads_vm1: bool = False
    writes_vm1: bool = False
    mode: str = ""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self._left = contextlib.ExitStack()

    @abstractmethod
    def open(self, queue_pairs: int) -> list[PortSpec]:
        """One PortSpec for each queue pair it has, at most so many; the caller owns their fds.

        A second call is for ports anew: those of the first must be closed.

        Raises:
            VhostPciError: It cannot be opened; then nothing is open, and nothing was left behind.
        """

    def look(self) -> str:
        """Why it must be closed and opened anew, or "". Also while its ports are in use."""
        return ""

    def missed(self, pair: int) -> int:  # noqa: ARG002 - most VFs tell their ports
        """Frames that `look` found lost at a queue pair, and no port knows of. At any time."""
        return 0

    def counters(self) -> dict[str, int]:
        """What device or kernel counted by themselves since the first `open`, by name. At any time.

        Empty where they do not.
        """
        return {}

    def share(self, mappings: Sequence[Mapping]) -> VhostPciError | None:  # noqa: ARG002 - most copy
        """VM1's memory is mapped: a VF that can, may reach it from now on.

        What keeps one that can from some of it, which is copied then; or None. The ports are open,
        and no loop runs them. The mappings stay until `unshare`.
        """
        return None

    def stop_receiving(self, pair: int) -> None:  # noqa: B027 - most VFs copy
        """When it returns, the VF writes to no buffer of the queue pair any more.

        What it has written stays for the port to see.

        Raises:
            VhostPciError: It does not stop: only `close` makes it.
        """

    def start_receiving(self, pair: int) -> None:  # noqa: B027 - most VFs copy
        """After `stop_receiving`: receive again, with an empty ring; `Port.set_direct` is due.

        Raises:
            VhostPciError: It does not start.
        """

    def unshare(self) -> None:  # noqa: B027 - most VFs copy
        """The mappings go; the VF no longer reads any frame there, as its ports have told."""

    def close(self) -> None:
        """Remove what `open` made beside descriptors. The ports are closed. Twice is fine."""
        self._left.close()

    @contextlib.contextmanager
    def _refusal(
        self, explained: ReadOnlyDict[int, tuple[str, str]] | None = None
    ) -> Iterator[None]:
        """Turn an OSError into a VhostPciError; explained gives cause and remedy by errno."""
        try:
            yield
        except OSError as error:
            cause, remedy = (explained or {}).get(error.errno or 0, (errno_text(error), ""))
            raise self._error(cause, remedy) from error

    def _error(self, cause: str, remedy: str = "") -> VhostPciError:
        return VhostPciError("open", f"VF {self.spec}", cause, remedy)


class PlainVf(Vf):
    """null, loop and gen: each queue pair on its own, nothing to open.

    Args:
        spec: The user's words.
        kind: "null", "loop" or "gen".
        frame_bytes: gen: of its frames, without FCS.
    """

    def __init__(self, spec: str, kind: str, frame_bytes: int = 0) -> None:
        super().__init__(spec)
        self.kind = kind
        self.frame_bytes = frame_bytes

    def open(self, queue_pairs: int) -> list[PortSpec]:
        """See `Vf.open`."""
        return [PortSpec(self.kind, frame_bytes=self.frame_bytes) for _ in range(queue_pairs)]


class PcapVf(Vf):
    """pcap: replays input, and writes output, whole records at its end. One queue pair.

    Output is emptied by the first `open`; a later one goes on writing, and replays from the start.

    Args:
        spec: The user's words.
        input_path: File to replay, or None.
        output_path: File to write, or None.
    """

    kind = "pcap"
    queue_pairs_max = 1

    def __init__(self, spec: str, input_path: str | None, output_path: str | None) -> None:
        super().__init__(spec)
        self._input = input_path
        self._output = output_path
        self._begun = False

    def open(self, queue_pairs: int) -> list[PortSpec]:  # noqa: ARG002 - it has one
        """See `Vf.open`; the ports open the files, and refuse what is no pcap file."""
        if not self._begun:
            self._begin()
        return [PortSpec(self.kind, input=self._input, output=self._output)]

    def _begin(self) -> None:
        with self._refusal():
            if self._input is not None:
                Path(self._input).open("rb").close()  # before output loses what it has
            if self._output is not None:
                self._refuse_overwriting_input(self._output)
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC
                os.close(os.open(self._output, flags, 0o666))
        self._begun = True

    def _refuse_overwriting_input(self, output: str) -> None:
        if self._input and Path(output).exists() and Path(output).samefile(self._input):
            raise self._error("input and output are the same file", "name another output")
