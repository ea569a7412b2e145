"""BAR 4: where packed rings stand, kept by the driver, and by VM1's front-end (docs/device.md 5.6).

The file outlives the device where a front-end keeps it (vhost-user, "Inflight I/O tracking"). So
both the driver and the front-end write it: what is read here is hostile input. It cannot shrink.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING

from driver.state_area import COMMIT, QUEUE_COUNT_MAX
from tools.device.backend_rules import Reason, RefusalError
from tools.device.ring_layout import HALF_MASK, layout_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.device.vm1_state import RingState, Vm1State

WORDS = struct.Struct("<II")  # committed, intended
LIFE = struct.Struct("<Q")
LIFE_OFFSET = QUEUE_COUNT_MAX * COMMIT.itemsize
COMMIT_SIZE = 2 * LIFE_OFFSET
MAGIC_OFFSET = COMMIT_SIZE - LIFE.size  # the life of ring 511, which no front-end can name
MAGIC = int.from_bytes(b"VPCIring", "little")
RUNS = 1  # in the life of a ring; the rest is its descriptor ring's bus address
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class CommitArea:
    """Owns the file. Thread rule: one thread.

    fd: the file's. serial: changes with the file.

    Raises:
        OSError: There is no memory for it.
    """

    def __init__(self) -> None:
        self.serial = 0
        self.fd = os.memfd_create("vhost-pci-commit", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, COMMIT_SIZE)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
            self.clear()
        except OSError:
            os.close(self.fd)
            raise

    @property
    def identity(self) -> tuple[int, int]:
        """What tells the file from another."""
        return _identity(self.fd)

    def clear(self) -> None:
        """Forget every ring."""
        os.pwrite(self.fd, bytes(COMMIT_SIZE - LIFE.size) + LIFE.pack(MAGIC), 0)

    def adopt(self, fd: int) -> int:
        """Go on with the file of an earlier device; takes fd over.

        Returns the descriptor that is of no use now, -1 for none; the caller closes it once the
        driver has let go of it.

        Raises:
            RefusalError: It is no such file. Nothing is taken over.
        """
        _check(fd)
        if _identity(fd) == self.identity:
            return fd
        former, self.fd = self.fd, fd
        self.serial += 1
        return former

    def words(self, ring: int) -> tuple[int, int]:
        """A ring's words, committed first."""
        committed, intended = WORDS.unpack(os.pread(self.fd, WORDS.size, ring * WORDS.size))
        return committed, intended

    def start(self, before: Vm1State, after: Vm1State) -> None:
        """Set the words of packed rings that start with a state, before it is shown.

        One that ran when an earlier device died goes on from the words it has, if the front-end
        brought them; it knows an older position at best.
        """
        if not layout_of(after.features).packed:
            return
        for index, ring in _begun(before.rings, after.rings):
            life = ring.desc | RUNS
            place = LIFE_OFFSET + index * LIFE.size
            known = os.pread(self.fd, LIFE.size, place)
            if after.resumes and known == LIFE.pack(life):
                continue
            position = ring.base & HALF_MASK
            os.pwrite(self.fd, WORDS.pack(position, position), index * WORDS.size)
            os.pwrite(self.fd, LIFE.pack(life), place)

    def finish(self, before: Vm1State, after: Vm1State) -> None:
        """Note which rings VM1 has stopped, once the driver has let go: VM1 knows where they stand.

        Not those that ended because the front-end went.
        """
        if after.connected and layout_of(before.features).packed:
            for index, _ in _begun(after.rings, before.rings):
                os.pwrite(self.fd, LIFE.pack(0), LIFE_OFFSET + index * LIFE.size)

    def close(self) -> None:
        """Once."""
        os.close(self.fd)


def _begun(
    before: tuple[RingState, ...], after: tuple[RingState, ...]
) -> Iterator[tuple[int, RingState]]:
    """Index and state of each ring that runs after, and did not before."""
    for index, ring in enumerate(after):
        if ring.started and not (index < len(before) and before[index].started):
            yield index, ring


def _identity(fd: int) -> tuple[int, int]:
    facts = os.fstat(fd)
    return facts.st_dev, facts.st_ino


def _check(fd: int) -> None:
    """Refuse what no device of ours gave: it would not be safe to map, or to believe."""
    try:
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) != SEALS:
            raise RefusalError(Reason.FILE, "has a region that is not sealed as ours are")
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            raise RefusalError(Reason.FILE, "has a region not open for reading and writing")
        if os.fstat(fd).st_size != COMMIT_SIZE:
            raise RefusalError(Reason.FILE, f"has a region of {os.fstat(fd).st_size} bytes")
        if os.pread(fd, LIFE.size, MAGIC_OFFSET) != LIFE.pack(MAGIC):
            raise RefusalError(Reason.FILE, "has a region that is none of ours")
    except OSError as error:
        raise RefusalError(Reason.FILE, f"has a region that cannot be read ({error})") from error
