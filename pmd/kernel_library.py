"""The kernel's shared library: where it is, the handshake with it, what it says of itself."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

from guest.errors import UsageError, VhostPciError
from pmd.kernel_abi import ABI, SIGNATURES, SIZES

_FILE = "_ringk.so"
_FLUSH = "PMD_KERNEL_FLUSH"
_FLUSHES = ("never", "first", "all")  # csrc/flush.c


def load(path: str) -> ctypes.CDLL:
    """Load the library at path and shake hands.

    Raises:
        VhostPciError: It is missing, not a library of ours, or of another ABI.
    """
    remedy = "reinstall the package, or build it: cmake -B build -G Ninja && cmake --build build"
    try:
        library = ctypes.CDLL(path, use_errno=True)
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as error:
        cause = str(error).removeprefix(f"{path}: ")
        raise VhostPciError("load", f"the kernel {path}", cause, remedy) from error
    if library.rk_abi() != ABI:
        cause = f"its ABI is {library.rk_abi()}, this package wants {ABI}"
        raise VhostPciError("load", f"the kernel {path}", cause, remedy)
    for structure, size in SIZES.items():
        found = library.rk_sizeof(structure.encode())
        if found != size:
            cause = f"its struct {structure} has {found} bytes, this package wants {size}"
            raise VhostPciError("load", f"the kernel {path}", cause, remedy)
    return library


@functools.cache
def library() -> ctypes.CDLL:
    """The kernel: PMD_KERNEL_LIBRARY if set, else `_ringk.so` beside this file; loaded once.

    Raises:
        UsageError: PMD_KERNEL_ISA or PMD_KERNEL_FLUSH has no meaning here.
        VhostPciError: It cannot be loaded, or is of another build.
    """
    found = load(os.environ.get("PMD_KERNEL_LIBRARY") or _installed())
    _check_flush(os.environ.get(_FLUSH, ""))
    said = os.environ.get("PMD_KERNEL_ISA", "")
    known = _names(found.rk_isa_name)
    if said not in ("", *known):
        cause = "neither this kernel nor this processor has such instructions for it"
        remedy = f"give one of {', '.join(known)}, or leave it out: then it is what pays"
        raise UsageError("use", f"PMD_KERNEL_ISA={said}", cause, remedy)
    return found


def _check_flush(said: str) -> None:
    if said not in ("", *_FLUSHES):
        remedy = f"give one of {', '.join(_FLUSHES)}, or leave it out: then it is tried what pays"
        raise UsageError("use", f"{_FLUSH}={said}", "it has no such meaning", remedy)


def _installed() -> str:
    beside = Path(__file__).with_name(_FILE)
    if beside.exists():
        return str(beside)
    # An editable installation keeps what it built away from the sources.
    import importlib.resources  # noqa: PLC0415 - slow, and elsewhere not needed

    return str(importlib.resources.files("pmd") / _FILE)


def _names(name_of: Any) -> tuple[str, ...]:  # noqa: ANN401 - a ctypes function has no better type
    names: list[str] = []
    while (name := name_of(len(names))) is not None:
        names.append(name.decode())
    return tuple(names)


@functools.cache
def drop_names() -> tuple[str, ...]:
    """Names of enum rk_drop by value, `sent` first: the meaning of `DirectionStats.drops`."""
    return _names(library().rk_drop_name)


@functools.cache
def fault_names() -> tuple[str, ...]:
    """Names of enum rk_fault by value, `none` first: the meaning of `Queue.fault`."""
    return _names(library().rk_fault_name)


def isa_name() -> str:
    """Of `isa_names`: what loops use beyond any processor's instructions. PMD_KERNEL_ISA says.

    It is chosen anew for all of them whenever a queue is made.
    """
    return str(library().rk_isa().decode())


@functools.cache
def isa_names() -> tuple[str, ...]:
    """What PMD_KERNEL_ISA may say on this processor: `scalar`, and then `avx2` and `avx512`."""
    return _names(library().rk_isa_name)


@functools.cache
def tsc_hz() -> int:
    """Cycles a second of the clock that `cycles` counters use; measured once, about 20 ms."""
    return int(library().rk_tsc_hz())
