"""stage.c as a library: a VM1 and a kernel stage that run on different threads."""

from __future__ import annotations

import ctypes
import os
import threading
from typing import TYPE_CHECKING

from guest.closing import Closing
from guest.cpus import pin_current_thread
from guest.errors import VhostPciError

if TYPE_CHECKING:
    from pathlib import Path

    from tools.stage.budget import Scenario


class Stage(Closing):
    """One stage and its VM1. VM1 is a thread of its own on its own CPU: what it writes is there.

    Thread rule: one thread, on another CPU than VM1's.

    Args:
        library: Built by tools.stage.build, shared.
        scenario: Which stage.
        vm1_cpu: Where VM1 runs.

    Raises:
        VhostPciError: No memory, or VM1 may not run there.
    """

    def __init__(self, library: Path, scenario: Scenario, vm1_cpu: int) -> None:
        self._library = _load(library)
        self._handle = self._library.stage_new(scenario.kind.encode(), *scenario.numbers)
        if not self._handle:
            cause = os.strerror(ctypes.get_errno()).lower()
            raise VhostPciError("begin", scenario.name, cause)
        self._wanted, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._ends = False
        self._pin_error: VhostPciError | None = None
        self._vm1 = threading.Thread(target=self._be_vm1, args=(vm1_cpu,), name="vm1")
        self._vm1.start()
        self._done.acquire()
        if self._pin_error is not None:
            self.close()
            raise self._pin_error

    def _be_vm1(self, cpu: int) -> None:
        try:
            pin_current_thread(cpu)
        except VhostPciError as error:
            self._pin_error = error
        self._done.release()
        while True:
            self._wanted.acquire()
            if self._ends:
                return
            self._library.stage_fill(self._handle)
            self._done.release()

    def fill(self) -> None:
        """Let VM1 take back what was returned and make all its buffers available."""
        self._wanted.release()
        self._done.acquire()

    def work(self) -> int:
        """Let the kernel turn until nothing is left; the packets forwarded so far."""
        return int(self._library.stage_work(self._handle))

    def translate(self) -> int:
        """Translate each buffer's address once; how many those are."""
        return int(self._library.stage_translate(self._handle, 1))

    @property
    def cycles(self) -> int:
        """TSC cycles of the kernel's turns so far."""
        return int(self._library.stage_cycles(self._handle))

    def close(self) -> None:
        """End VM1 and free all. Twice is fine."""
        if self._handle:
            self._ends = True
            self._wanted.release()
            self._vm1.join()
            self._library.stage_free(self._handle)
            self._handle = None


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path), use_errno=True)
    library.stage_new.restype = ctypes.c_void_p
    library.stage_new.argtypes = [ctypes.c_char_p, *[ctypes.c_uint32] * 8]
    for name in ("stage_free", "stage_fill"):
        getattr(library, name).restype = None
        getattr(library, name).argtypes = [ctypes.c_void_p]
    for name in ("stage_work", "stage_cycles"):
        getattr(library, name).restype = ctypes.c_uint64
        getattr(library, name).argtypes = [ctypes.c_void_p]
    library.stage_translate.restype = ctypes.c_uint64
    library.stage_translate.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    return library
