"""Machines that were booted once, saved, and are restored in a second.

A template has booted and its agent is up; it has no network interface, but the driver of most, and
knows nothing of our own package. Interfaces and functions are plugged in after the restore.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from guest.errors import VhostPciError
from tools.lab.cache import recipe_key
from tools.lab.vm import Hardware, Vm

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.lab.cache import Cache
    from tools.lab.image import Image
    from tools.lab.qemu import Qemu

_BOOT_TIMEOUT_S = 600.0
_KVM_BOOT_TIMEOUT_S = 60.0
_RESTORE_TIMEOUT_S = 120.0
_POLL_S = 0.05
# Pages that are free again hold the archive's bytes; as zeros they need no room in the file.
_ZERO = """
import re
free_kib = int(re.search(r"MemFree: *(\\d+)", open("/proc/meminfo").read())[1])
b"\\0" * (max(0, free_kib - 32768) * 1024)
"""
_RECIPE = "4"
_VIRTUALIZATION = re.compile(r"^flags\b.* (vmx|svm)\b", re.MULTILINE)  # Intel's, AMD's
_MEMORY, _STATE = "memory", "state"


class Templates:
    """Restores machines, and makes the template of each kind when it is first needed.

    Args:
        cache: Where templates are kept.
        qemu: The hypervisor.
        image: What machines boot.
        tell: Called with a line before something takes long.

    Attributes:
        kvm_refusal: Once `accelerator` was asked: why a KVM that is here cannot be used, or "".
    """

    def __init__(self, cache: Cache, qemu: Qemu, image: Image, tell: Callable[[str], None]) -> None:
        self._cache = cache
        self._qemu = qemu
        self._image = image
        self._tell = tell
        self._accelerator = ""
        self.kvm_refusal = ""

    def restore(self, name: str, memory_mib: int, directory: Path, *, iommu: bool = True) -> Vm:
        """A running machine of that memory size, with an IOMMU or not; the caller closes it.

        Raises:
            VhostPciError: It cannot be booted or restored.
        """
        hardware = Hardware(self._qemu, self._image, self.accelerator, memory_mib, iommu)
        saved = self._saved(hardware)
        began = time.monotonic()
        vm = Vm(name, hardware, directory, saved / _MEMORY)
        try:
            _ignore_memory(vm)
            vm.qmp.execute("migrate-incoming", uri=f"file:{saved / _STATE}")
            vm.wait_until_up(_RESTORE_TIMEOUT_S)
            vm.restored_in_s = time.monotonic() - began
        except BaseException:
            vm.close()
            raise
        return vm

    def make(self, *kinds: tuple[int, bool]) -> None:
        """Make the templates that are not there yet; they boot at the same time.

        Args:
            kinds: Memory size in MiB, and whether there is an IOMMU, as of `restore`. Whoever makes
                the same ones at once is to name them in the same order.

        Raises:
            VhostPciError: One cannot be booted or saved.
        """
        if kinds:
            (memory_mib, iommu), *rest = kinds
            hardware = Hardware(self._qemu, self._image, self.accelerator, memory_mib, iommu)
            self._saved(hardware, lambda: self.make(*rest))
            self.make(*rest)

    @property
    def accelerator(self) -> str:
        """`kvm` where a machine has booted with it, `tcg` elsewhere.

        That /dev/kvm can be opened says little: there are hosts whose KVM cannot run a stock
        kernel, as those that do without the processor's virtualization. The answer is remembered
        until this host boots again.
        """
        if not self._accelerator:
            self._accelerator = "kvm" if self._kvm_works() else "tcg"
        return self._accelerator

    def _kvm_works(self) -> bool:
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            return False
        if not _VIRTUALIZATION.search(Path("/proc/cpuinfo").read_text()):
            self.kvm_refusal = "the processor has neither VMX nor SVM"
            return False
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        key = recipe_key(_RECIPE, boot, *self._qemu.command)

        def probe(path: Path) -> None:
            self._tell("trying KVM")
            hardware = Hardware(self._qemu, self._image, "kvm", 1024)
            try:
                with Vm("probe", hardware, path) as vm:
                    vm.wait_until_up(_KVM_BOOT_TIMEOUT_S)
            except VhostPciError as error:
                (path / "refused").write_text(f"{error}\n")

        refused = self._cache.layer("kvm", key, probe) / "refused"
        self.kvm_refusal = refused.read_text().strip() if refused.exists() else ""
        return not self.kvm_refusal

    def _saved(self, hardware: Hardware, meanwhile: Callable[[], None] = lambda: None) -> Path:
        """The directory of a template; what is to be done meanwhile is done if it has to boot."""
        facts = (hardware.qemu.version, hardware.image.key, *hardware.options())
        name = f"{'template' if hardware.iommu else 'bare'}{hardware.memory_mib}"
        return self._cache.layer(
            name, recipe_key(_RECIPE, *facts), lambda path: self._make(hardware, path, meanwhile)
        )

    def _make(self, hardware: Hardware, path: Path, meanwhile: Callable[[], None]) -> None:
        self._tell(f"booting the template of {hardware.memory_mib} MiB, with {self.accelerator}")
        with Vm("template", hardware, path) as vm:
            meanwhile()
            vm.wait_until_up(_BOOT_TIMEOUT_S)
            vm.agent.run("modprobe", "virtio_net", timeout_s=_BOOT_TIMEOUT_S)
            vm.agent.run("python3", "-c", _ZERO, timeout_s=_BOOT_TIMEOUT_S)
            _save(vm, path)


def _ignore_memory(vm: Vm) -> None:
    """Its memory is a file, saved and restored as one: what QEMU streams is the rest."""
    capability = {"capability": "x-ignore-shared", "state": True}
    vm.qmp.execute("migrate-set-capabilities", capabilities=[capability])


def _save(vm: Vm, path: Path) -> None:
    """Save a machine, which stops for good."""
    _ignore_memory(vm)
    vm.qmp.execute("migrate", uri=f"file:{path / _STATE}")
    deadline = time.monotonic() + _BOOT_TIMEOUT_S
    while True:
        facts = vm.qmp.execute("query-migrate")
        if facts.get("status") == "completed":
            vm.memory.save(path / _MEMORY)
            return
        if facts.get("status") == "failed" or time.monotonic() > deadline:
            cause = facts.get("error-desc", f"QEMU says {facts.get('status')}")
            raise VhostPciError("save", f"machine {vm.name}", cause)
        time.sleep(_POLL_S)
