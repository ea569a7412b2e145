"""The attached vhost-pci function: docs/device.md as the driver follows it.

The ladder: identity -> BAR 0's registers -> memory decode and bus mastering -> state area mapped ->
header checked. Then, as often as the generation changes: `state` (snapshot, windows mapped),
`acknowledge`. `close` goes the same way down.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from typing import TYPE_CHECKING

from driver.device_state import DeviceState, DirtyMap
from driver.kick_events import KickEvents
from driver.memory_map import MappedArea, MemoryMap, Miss
from driver.ring import Feature, Ring
from driver.state_area import (
    CLASS_CODE,
    COMMIT,
    COMMIT_REGION,
    DEVICE_ID,
    FIRST_EXTENSION_WINDOW,
    GENERATION_OFFSET,
    HEADER,
    MAGIC,
    MISS,
    PAGE_SIZE,
    PID_OFFSET,
    VENDOR_ID,
    VERSION_MAJOR,
    WINDOW_RW,
    DriverFeature,
    DriverStatus,
    Register,
    Status,
)
from driver.state_reader import StateReader, Tables, version_error
from guest.closing import Closing
from guest.errors import DeviceGoneError, VhostPciError
from guest.function import Area, Region

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from guest.function import Doorbell, Function, RegionInfo
    from guest.mapping import Mapping

STATE_DEADLINE_S = 2.0  # docs/device.md 5.2: longer, and the device gives the driver up for dead

# PCI configuration space (PCI Express base specification, 7.5.1.1).
_CONFIG_COMMAND = 0x04
_CONFIG_REVISION = 0x08  # and the class code above it
_COMMAND_MEMORY = 1 << 1
_COMMAND_BUS_MASTER = 1 << 2


class VhostPci(Closing):
    """A vhost-pci function, attached.

    Thread rule: one thread at a time. Owns its mappings, not the function, which must outlive it.

    Args:
        function: Open.
        bar: Where the user believes the window is; only 2 is true.

    Raises:
        DeviceGoneError: The function reads all ones.
        VhostPciError: bar is another, or it is no vhost-pci function, of another version, or
            contradicts itself.
    """

    def __init__(self, function: Function, bar: int = WINDOW_RW) -> None:
        if bar != WINDOW_RW:
            cause = f"BAR {bar} is not the window: {_what_is(bar)}"
            raise VhostPciError("use", f"--bar {bar}", cause, f"VM1's memory is BAR {WINDOW_RW}")
        self._function = function
        self.name = function.name
        self._areas: dict[int, tuple[MappedArea, ...]] = {}
        self._infos: dict[int, RegionInfo] = {}
        self._mappings: list[Mapping] = []
        self._commits: Mapping | None = None
        self._active = False
        self._closed = False
        self._kicks = KickEvents(function, self._write)
        self._check_identity()
        self._command = self._enable()
        try:
            size = self._check_registers()
            self._state_area = self._map_state(size)
        except BaseException:
            with contextlib.suppress(VhostPciError):
                self._write_command(self._command)
            raise
        try:
            self._reader = StateReader(self._state_area, size, self.name)
            self._driver_offset = self._reader.header()["driver_offset"]
        except BaseException:
            self.close()
            raise

    def _check_identity(self) -> None:
        self._check_present()
        found = self._function.identity()
        actual = (found.vendor, found.device, found.class_code)
        if actual != (VENDOR_ID, DEVICE_ID, CLASS_CODE):
            cause = (
                f"it is {found.vendor:04x}:{found.device:04x} class {found.class_code:06x}, and a "
                f"vhost-pci function is {VENDOR_ID:04x}:{DEVICE_ID:04x} class {CLASS_CODE:06x}"
            )
            raise VhostPciError("attach to", self.name, cause)
        if found.revision != VERSION_MAJOR:
            raise version_error(self.name, found.revision)

    def _enable(self) -> int:
        """Turn memory decode and bus mastering on; returns the command register as it was."""
        raw = self._function.read(Region.CONFIG, _CONFIG_COMMAND, 2)
        command = int(struct.unpack("<H", raw)[0])
        self._write_command(command | _COMMAND_MEMORY | _COMMAND_BUS_MASTER)
        return command

    def _write_command(self, command: int) -> None:
        self._function.write(Region.CONFIG, _CONFIG_COMMAND, struct.pack("<H", command))

    def _read(self, register: int) -> int:
        value = int(struct.unpack("<I", self._function.read(Region.BAR0, register, 4))[0])
        if value == 0xFFFFFFFF:
            self._check_present()
        return value

    def _write(self, register: int, value: int) -> None:
        self._function.write(Region.BAR0, register, struct.pack("<I", value))

    @property
    def present(self) -> bool:
        """Whether the function answers (docs/device.md 8)."""
        try:
            self._check_present()
        except VhostPciError:
            return False
        return True

    def _check_present(self) -> None:
        """DeviceGoneError if configuration space reads all ones (docs/device.md 8)."""
        # Not the ids: vfio-pci answers those from a copy (vfio_pci_config.c).
        if self._function.read(Region.CONFIG, _CONFIG_REVISION, 4) == b"\xff\xff\xff\xff":
            raise DeviceGoneError("use", self.name, "the device is gone")

    def _check_registers(self) -> int:
        """STATE_SIZE, after magic and version."""
        magic = self._read(Register.MAGIC)
        if magic != MAGIC:
            cause = f"its magic register is {magic:#x}, not {MAGIC:#x}"
            raise VhostPciError("attach to", self.name, cause)
        major = self._read(Register.VERSION) >> 16
        if major != VERSION_MAJOR:
            raise version_error(self.name, major)
        return self._read(Register.STATE_SIZE)

    def _map_state(self, size: int) -> Mapping:
        offset = self._read(Register.STATE_OFFSET)
        whole = -(-size // PAGE_SIZE) * PAGE_SIZE
        # Over vfio-user the state area is BAR 0's only area; inside VM2 all of BAR 0 is one.
        holds = any(
            area.offset <= offset and offset + whole <= area.offset + area.size
            for area in self._function.region(Region.BAR0).areas
        )
        if offset % PAGE_SIZE or size < HEADER.itemsize or not holds:
            cause = f"its {size} bytes at {offset:#x} of BAR 0 are not mappable"
            raise VhostPciError("map", f"the state area of {self.name}", cause)
        return self._function.map_area(Region.BAR0, Area(offset, whole), writable=True)

    def generation(self) -> int:
        """The state area's generation now; odd while the device writes."""
        return self._reader.generation()

    @property
    def generation_address(self) -> int:
        """Where the generation is in this process, until close: for the kernel's loop."""
        return self._state_area.address + GENERATION_OFFSET

    @property
    def heartbeat_address(self) -> int:
        """Where the driver area's u64 heartbeat is in this process, until close."""
        return self._state_area.address + self._driver_offset

    def commit_address(self, ring: int) -> int:
        """Where a packed ring's commit words are in this process (docs/device.md 5.6).

        Until the next `state` or close. 0: the device has none; packed rings cannot be served then.
        """
        return self._commits.address + ring * COMMIT.itemsize if self._commits else 0

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """The windows' mapped parts, each to be guarded; the next `state` and close close them."""
        return tuple(self._mappings)

    @property
    def windows(self) -> dict[int, tuple[MappedArea, ...]]:
        """What is mapped of each window."""
        return dict(self._areas)

    def state(self) -> DeviceState:
        """Take the device's state: tables and windows of one generation (docs/device.md 5.2).

        Unmaps the windows of the former state first: the caller has torn down all that used them,
        and acknowledges the new generation afterwards. Reading order is program order: this is the
        control path, and the poll loop checks the generation again with acquire.

        Raises:
            DeviceGoneError: See there.
            VhostPciError: The state does not come to rest within STATE_DEADLINE_S, or contradicts
                itself. No window is mapped then.
        """
        deadline = time.monotonic() + STATE_DEADLINE_S
        while True:
            self._check_present()
            self._unmap_windows()
            tables = self._reader.snapshot(deadline)
            try:
                state = self._map_windows(tables)
            except VhostPciError:
                # Torn between two generations, a table and its windows need not fit.
                self._unmap_windows()
                if self.generation() == tables.generation:
                    raise
            else:
                if self.generation() == tables.generation:
                    return state
            self._unmap_windows()
            self._reader.check_deadline(deadline)

    def _map_windows(self, tables: Tables) -> DeviceState:
        infos = {
            window: self._function.region(window)
            for window in tables.windows
            if self._is_window(window)
        }
        memory = MemoryMap(tables.memory, infos, self.name)
        self._infos = infos
        for window in sorted(memory.windows):
            self._map_window(window, infos[window])
        size = tables.header["commit_size"]
        if size and tables.header["features"] & Feature.RING_PACKED:
            area = Area(0, -(-size // PAGE_SIZE) * PAGE_SIZE)
            self._commits = self._function.map_area(COMMIT_REGION, area, writable=True)
        self._driver_offset = tables.header["driver_offset"]
        return self._device_state(tables, memory)

    def _device_state(self, tables: Tables, memory: MemoryMap) -> DeviceState:
        return DeviceState(
            generation=tables.generation,
            status=Status(tables.header["status"]),
            features=tables.header["features"],
            mtu=tables.header["mtu"],
            rings=tuple(Ring.of_row(index, row) for index, row in enumerate(tables.rings)),
            memory=memory,
            regions=memory.regions(self._areas),
            dirty=self._dirty_map(tables.header),
            refused=tuple(Miss(*row) for row in tables.refused),
            window_serial=tables.header["window_serial"],
            announcement=tables.announcement,
        )

    def retranslated(self, former: DeviceState) -> DeviceState | None:
        """The device's state, where only translations are others than in the one taken last.

        Windows and all else stay as they are; None where more has changed: `state` is due.

        Raises:
            VhostPciError: As `state`; nothing has changed then.
        """
        tables = self._reader.snapshot(time.monotonic() + STATE_DEADLINE_S)
        header = tables.header
        if not former.window_serial or header["window_serial"] != former.window_serial:
            return None
        if not tables.windows <= self._areas.keys():
            return None
        memory = MemoryMap(tables.memory, self._infos, self.name)
        state = self._device_state(tables, memory)
        only = former._replace(
            generation=state.generation,
            memory=memory,
            regions=state.regions,
            refused=state.refused,
        )
        return state if state == only else None

    def _dirty_map(self, header: dict[str, int]) -> DirtyMap | None:
        start = header["dirty_offset"]
        if not start:
            return None
        address = self._state_area.address + start
        return DirtyMap(address, header["dirty_size"], header["dirty_shift"])

    def _is_window(self, index: int) -> bool:
        if index == WINDOW_RW:
            return True
        return FIRST_EXTENSION_WINDOW <= index < self._function.region_count()

    def _map_window(self, window: int, info: RegionInfo) -> None:
        areas: list[MappedArea] = []
        for area in sorted(info.areas, key=lambda each: each.offset):
            mapping = self._function.map_area(window, area, writable=info.writable)
            self._mappings.append(mapping)
            areas.append(MappedArea(area.offset, area.size, mapping.address))
        self._areas[window] = tuple(areas)

    def _unmap_windows(self) -> None:
        self._areas.clear()
        if self._commits:
            self._commits.close()
            self._commits = None
        while self._mappings:
            self._mappings.pop().close()

    def activate(self) -> None:
        """Tell the device that this process is going to touch the rings (DRIVER_STATUS 1)."""
        self._state_area.store(self._driver_offset + PID_OFFSET, os.getpid())
        features = DriverFeature.MARKS | DriverFeature.TRANSLATES
        self._write(Register.DRIVER_FEATURES, features)
        self._write(Register.DRIVER_STATUS, DriverStatus.ACTIVE)
        self._active = True

    def deactivate(self) -> None:
        """Tell the device that nothing of VM1 is touched any more (DRIVER_STATUS 0)."""
        self._write(Register.DRIVER_STATUS, DriverStatus.DETACHED)
        self._active = False

    def acknowledge(self, generation: int) -> None:
        """Say that nothing is used any more that this generation took away."""
        self._write(Register.ACK, generation)

    def report_queue_error(self, ring: int, reason: int) -> None:
        """Say that a ring is quarantined; reason is an enum rk_fault, 16 bits."""
        self._write(Register.QUEUE_ERROR, reason << 16 | ring)

    def report_misses(self, misses: Sequence[Miss]) -> None:
        """Ask for translations; a new generation answers. Those that find no room are left out."""
        header = self._reader.header()
        told = misses[: header["miss_capacity"]]
        self._state_area.write(header["miss_offset"], MISS.packed(told))
        if told:
            self._write(Register.MISS, len(told))

    def doorbells(self, rings: Iterable[int]) -> dict[int, Doorbell]:
        """How to call VM1 for each ring. The function owns the descriptors, until the next call."""
        offsets = {Register.DOORBELL + 4 * ring: ring for ring in rings}
        found = self._function.doorbells(Region.BAR0, list(offsets))
        return {offsets[offset]: doorbell for offset, doorbell in found.items()}

    def kick_fds(self, rings: Iterable[int]) -> dict[int, int]:
        """What a driver that sleeps waits for: an eventfd for each of these rings.

        It is written when VM1 kicks the ring; a kick since the last look counts. Natively it is
        VM1's own, with no process between. Through QEMU it is an MSI vector's, which rings of
        equal n modulo 7 share; KICK_ARM is set for exactly these rings. A ring that is not KICKABLE
        never wakes anybody: poll it. The file descriptors belong to this object, until the next
        call or close; VM1 has the same open file and may make it blocking: wait edge-triggered, or
        read with RWF_NOWAIT.

        Raises:
            VhostPciError: The function has too few interrupt vectors.
        """
        return self._kicks.take(rings)

    @property
    def change_fd(self) -> int:
        """An eventfd, non-blocking, written at each new generation; -1 before `kick_fds`.

        It stays the same until close, and belongs to this object.
        """
        return self._kicks.change_fd

    def close(self) -> None:
        """Deactivate, unmap everything, restore the command register. Twice is fine."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(VhostPciError):  # a device that is gone needs no farewell
            if self._active:
                self.deactivate()
        self._kicks.close()
        self._unmap_windows()
        self._state_area.close()
        with contextlib.suppress(VhostPciError):
            self._write_command(self._command)


def _what_is(bar: int) -> str:
    if bar == Region.BAR0:
        return "it holds registers and the state area"
    if bar == COMMIT_REGION:
        return "it holds the positions of packed rings"
    if bar in (Region.BAR1, Region.BAR3, Region.BAR5):
        return f"it is the upper half of 64-bit BAR {bar - 1}"
    return "a PCI function has BARs 0 to 5"
