"""A virtual machine: QEMU's process, its monitor, the agent inside, its console's log.

Every machine is the same: two processors, a virtual IOMMU, empty root ports for what is plugged
in later. That is what VM2 needs, VM1 does not mind, and one template serves all (`template`).
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from guest.closing import Closing
from guest.errors import VhostPciError
from tools.lab.agent import Agent
from tools.lab.child import Child
from tools.lab.memory import Memory
from tools.lab.qmp import Qmp

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tools.lab.image import Image
    from tools.lab.qemu import Qemu

PORTS = 6  # root ports
PROCESSORS = 2
_RESERVED_GIB = 16  # of each root port, for windows: stock QEMU reserves next to nothing
# VM2's addresses for devices, up to 2^40: with a place for a window of 512 GiB, which its IOMMU
# does not translate as a whole (tests/vm). A processor of the host's may have more bits, and
# firmware puts windows at the top: there the IOMMU has to translate what they reach.
_HOLE_GIB = 1020
_IOMMU_BITS = {"kvm": 48, "tcg": 39}
# QEMU reads VM1's memory, which is another's BAR, by way of bounce buffers, of which a card has
# 4 KiB by default: one that has too few of them stops, or sends nothing of the frame.
BOUNCE_BYTES = 4 << 20
_PLUG_TIMEOUT_S = 120.0


# Where each instruction is emulated: `rep movsb` is a byte at a time, so kernel and libc copy by
# words without erms and fsrm; each access of the user's memory ends a block with smap; la57 is one
# more page table to walk. Beside an AMD processor QEMU keeps devices away from 1012 GiB and up;
# Linux does not trust the write-combining of Intel's early ones, as which QEMU's passes else.
_INTEL = "vendor=GenuineIntel,family=6,model=94,stepping=3"
_PROCESSOR = {"kvm": "max", "tcg": f"max,-erms,-fsrm,-smap,-la57,{_INTEL}"}
# Likewise: no zeroing twice, no thunks, a clock that is read without leaving the guest, no waiting
# for other processors' turns. tests/vm wants lockdown. On a busy host an emulated timer misses the
# ticks that Linux counts when it tries it, and Linux was seen to panic then.
_EMULATED = (
    "no_timer_check",
    "mitigations=off",
    "init_on_alloc=0",
    "randomize_kstack_offset=off",
    "tsc=reliable",
    "nowatchdog",
    "rcupdate.rcu_expedited=1",
    "lsm=lockdown",
    "audit=0",
)


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a machine is made of; iommu: whether it has one, as VM2 has to."""

    qemu: Qemu
    image: Image
    accelerator: str  # "kvm" or "tcg"
    memory_mib: int
    iommu: bool = True

    def options(self) -> list[str]:
        """QEMU's options, but for where its sockets and its console are.

        The IOMMU's are those a vfio-user function needs: without caching-mode QEMU aborts as soon
        as the guest enables it. VM1's memory has to be a shared file for vhost-user: `memory`.
        """
        accelerate = {"kvm": "kvm", "tcg": "tcg,thread=multi"}[self.accelerator]
        chip = ",kernel-irqchip=split" if self.accelerator == "kvm" else ""
        words = ["console=ttyS0", "panic=-1", "quiet", "intel_iommu=on", "iommu.passthrough=0"]
        words += ["rootfstype=ramfs"]  # a tmpfs takes half of the memory, which the archive fills
        words += _EMULATED if self.accelerator == "tcg" else ()
        options = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        # Linux has no use for an HPET, and QEMU goes on with its ticks where Linux switched it off.
        options += ["-machine", f"q35,hpet=off,memory-backend=memory{chip}", "-accel", accelerate]
        options += ["-cpu", _PROCESSOR[self.accelerator], "-smp", str(PROCESSORS)]
        options += ["-m", f"{self.memory_mib}M"]
        if self.iommu:
            bits = _IOMMU_BITS[self.accelerator]
            options += ["-device", f"intel-iommu,intremap=on,caching-mode=on,aw-bits={bits}"]
        if self.iommu and self.accelerator == "tcg":
            options += ["-global", f"q35-pcihost.pci-hole64-size={_HOLE_GIB}G"]
        for port in range(1, PORTS + 1):
            place = f"id=port{port},chassis={port},slot={port}"
            reserve = f"pref64-reserve={_RESERVED_GIB}G"
            options += ["-device", f"pcie-root-port,{place},{reserve}"]
        options += ["-kernel", str(self.image.kernel), "-initrd", str(self.image.initramfs)]
        options += ["-append", " ".join(words)]
        options += ["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent"]
        options[-1] += ",name=agent"
        return options


class Vm(Closing):
    """One running machine; a context manager that ends it. Thread rule: one thread.

    Args:
        name: For messages and files.
        hardware: What it is made of.
        directory: Where NAME.console and NAME.qemu go.
        filled: What its memory holds at first, a file of `Memory.save`; without one it boots, with
            one it waits for the rest of its state (`-incoming`).

    Attributes:
        restored_in_s: From its start until its agent answered; 0.0 where it booted.

    Raises:
        VhostPciError: QEMU does not start.
    """

    def __init__(
        self, name: str, hardware: Hardware, directory: Path, filled: Path | None = None
    ) -> None:
        self.name = name
        self.hardware = hardware
        self.console = directory / f"{name}.console"
        self.restored_in_s = 0.0
        self._used_ports: dict[str, int] = {}
        with contextlib.ExitStack() as stack:
            size_bytes = hardware.memory_mib << 20
            self.memory = stack.enter_context(Memory(name, size_bytes))
            if filled is not None:
                self.memory.load(filled)
            monitor, its_monitor = _pair(stack)
            agent, its_agent = _pair(stack)
            theirs = (its_monitor.fileno(), its_agent.fileno(), self.memory.fd)
            qemu = hardware.qemu
            command = [*qemu.command, "-name", name, *hardware.options()]
            backend = f"memory-backend-file,id=memory,size={size_bytes},share=on"
            command += ["-object", f"{backend},mem-path=/proc/self/fd/{self.memory.fd}"]
            command += ["-global", f"igbvf.x-max-bounce-buffer-size={BOUNCE_BYTES}"]
            command += ["-incoming", "defer"] if filled is not None else []
            command += ["-serial", f"file:{self.console}"]
            command += ["-chardev", f"socket,id=monitor,fd={its_monitor.fileno()}"]
            command += ["-mon", "chardev=monitor,mode=control"]
            command += ["-chardev", f"socket,id=agent,fd={its_agent.fileno()}"]
            self.process = Child(
                f"QEMU of {name}",
                command,
                {**os.environ, **qemu.environment},
                directory / f"{name}.qemu",
                theirs,
            )
            stack.enter_context(self.process)
            its_monitor.close()
            its_agent.close()
            self.agent = Agent(name, agent)
            try:
                self.qmp = Qmp(name, monitor)
            except VhostPciError:
                self.process.wait(1.0)
                self.process.require_running()
                raise
            self._stack = stack.pop_all()

    def wait_until_up(self, timeout_s: float) -> None:
        """Return once the agent answers; VhostPciError if QEMU ends before, or it takes longer."""
        self.agent.greet(timeout_s, self._require_healthy)

    def _require_healthy(self) -> None:
        self.process.require_running()
        status = self.qmp.execute("query-status")["status"]
        if status in ("internal-error", "guest-panicked", "io-error"):
            raise VhostPciError("run", f"machine {self.name}", f"QEMU reports {status}")

    def plug(
        self,
        name: str,
        driver: str,
        named: Mapping[str, object] = MappingProxyType({}),
        **properties: object,
    ) -> None:
        """Plug a PCI function into a free root port.

        Args:
            name: Its id, to unplug it by.
            driver: QEMU's name of the device.
            named: As of QMP's device_add.
            properties: The same; underscores stand for hyphens.

        Raises:
            VhostPciError: QEMU refuses, or all root ports are taken.
        """
        port = self.free_port(name)
        arguments = {"driver": driver, "id": name, "bus": f"port{port}", **named}
        arguments |= {key.replace("_", "-"): value for key, value in properties.items()}
        self.qmp.execute_named("device_add", arguments)
        self._used_ports[name] = port

    def free_port(self, name: str) -> int:
        """The number of the root port that the next function is plugged into.

        Raises:
            VhostPciError: All are taken; name: for which.
        """
        free = set(range(1, PORTS + 1)) - set(self._used_ports.values())
        if not free:
            raise VhostPciError("plug", name, f"all {PORTS} root ports of {self.name} are taken")
        return min(free)

    def unplug(self, name: str) -> None:
        """Unplug it, and return once the guest has let go of it.

        Raises:
            VhostPciError: QEMU refuses, or the guest does not let go.
        """
        self.qmp.execute("device_del", id=name)
        self.qmp.wait_event("DEVICE_DELETED", _PLUG_TIMEOUT_S, device=name)
        del self._used_ports[name]

    def close(self) -> None:
        """End it at once; it has no disk to spoil. Twice is fine."""
        self.process.kill()
        self.agent.close()
        self.qmp.close()
        self._stack.close()


def _pair(stack: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    """A connection: our end, and the one that QEMU inherits."""
    ours, theirs = socket.socketpair()
    stack.enter_context(ours)
    stack.enter_context(theirs)
    return ours, theirs
