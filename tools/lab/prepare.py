"""What comes before any machine: all that the cache gives, told a line a step."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from tools.lab import debian, own
from tools.lab.cache import Cache, cache_directory
from tools.lab.image import make_image
from tools.lab.picture import VM1_MEMORY_MIB, VM2_MEMORY_MIB
from tools.lab.qemu import find_qemu
from tools.lab.template import Templates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# What a picture's machines are restored from, as of `Templates.make`.
KINDS = ((VM2_MEMORY_MIB, True), (VM1_MEMORY_MIB, False))


class Steps:
    """Says what is being done, and how long it took.

    Args:
        tell: Called with each line as it is known.
        begin: Called with what is about to be done, where somebody watches.
    """

    def __init__(
        self, tell: Callable[[str], None], begin: Callable[[str], None] = lambda _: None
    ) -> None:
        self._tell = tell
        self.begin = begin
        self._count = 0

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[list[str]]:
        """One step: yields a list for what is worth saying about it; what it raises fails it."""
        self._count += 1
        facts: list[str] = []
        began = time.monotonic()
        self.begin(f"{self._count:2} {what} ...")
        verdict = "FAILED"
        try:
            yield facts
            verdict = "ok"
        finally:
            words = ", ".join([f"{verdict}, {time.monotonic() - began:.1f} s", *facts])
            self._tell(f"{self._count:2} {what}: {words}")


def prepare(
    steps: Steps, qemu: Path | None, kernel_suite: str = debian.SUITE
) -> tuple[Templates, Path]:
    """Where machines come from, and our package for them; fetched or made now if need be.

    Args:
        steps: Where each step is told.
        qemu: The user's QEMU, or None for Debian's.
        kernel_suite: As of `make_image`.

    Raises:
        VhostPciError: Something cannot be fetched or made.
    """
    cache = Cache(cache_directory())
    with debian.Packages() as packages:
        with steps.step("hypervisor") as facts:
            hypervisor = find_qemu(cache, packages, qemu)
            facts.append(f"QEMU {hypervisor.version}")
        with steps.step("kernel and initramfs") as facts:
            image = make_image(cache, packages, kernel_suite)
            facts.append(f"Linux {image.release}")
    with steps.step("our package"):
        package = own.package(cache, image.python)
    templates = Templates(cache, hypervisor, image, lambda line: steps.begin(f"   {line} ..."))
    with steps.step("accelerator") as facts:
        facts.append(templates.accelerator)
        if templates.kvm_refusal:
            facts.append(f"though there is a KVM: {templates.kvm_refusal}")
    with steps.step("machines, booted once"):
        templates.make(*KINDS)
    return templates, package
