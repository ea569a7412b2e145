"""Strategies for packed rings: mostly legal ones, and ways a hostile VM1 breaks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.kernel.hostile import BAD_ADDRESSES, BAD_LENGTHS, FAR_ADDRESSES, Table, buffers
from tests.kernel.packed_driver import AVAIL, INDIRECT, NEXT, USED, WRAP, WRITE
from tests.kernel.packed_rig import PackedRig
from tests.kernel.rig import DATA_SEAM

_FLIPS = st.sampled_from(
    [
        *(NEXT, NEXT, WRITE, WRITE | NEXT),
        *(INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE),
        *(AVAIL, USED, AVAIL | USED, 0x7F78),
    ]
)


@dataclass(frozen=True)
class Desc:
    """What VM1 writes as one descriptor; flags: those of `PackedDriver.put`."""

    address: int
    length: int
    id: int
    flags: int


@dataclass(frozen=True)
class PackedProgram:
    """What VM1 wrote: descriptors from the ring's position on, and its event structure."""

    size: int
    features: dict[str, Any]
    start: int
    descs: list[Desc]
    tables: list[Table]
    event: tuple[int, int]

    def rig(self, *, far: bool = True) -> PackedRig:
        """A rig in this state; the descriptors are shown."""
        rig = PackedRig(self.size, self.start, far=far, **self.features)
        for table in self.tables:
            rig.table(table.bus, *table.entries)
        for desc in self.descs:
            rig.driver.put(desc.address, desc.length, desc.id, desc.flags, first=False)
        rig.set_event(*self.event)
        return rig


@st.composite
def packed_rings(
    draw: st.DrawFn, *, write: bool, hostile: bool = True, in_order: bool | None = None
) -> PackedProgram:
    """A ring's content; hostile: with mutations; in_order: as given, or either."""
    size = draw(st.sampled_from([1, 2, 3, 7, 8, 8, 12, 100]))
    mergeable = write and draw(st.booleans())
    features = {
        "header_bytes": 12 if mergeable else draw(st.sampled_from([10, 12])),
        "indirect": draw(st.sampled_from([True, True, False])),
        "event_idx": draw(st.booleans()),
        "mergeable": mergeable,
        "mtu": draw(st.sampled_from([0, 0, 68, 1500])),
        "in_order": draw(st.booleans()) if in_order is None else in_order,
    }
    start = draw(st.integers(0, size - 1)) | draw(st.sampled_from([0, WRAP]))
    direction = WRITE if write else 0
    descs: list[Desc] = []
    tables: list[Table] = []
    for chain in range(draw(st.integers(1, min(size, 8)))):
        room = size - len(descs)
        if room == 0:
            break
        if features["indirect"] and draw(st.booleans()):
            table = _table(draw, len(tables), size, direction, write=write)
            tables.append(table)
            descs.append(Desc(table.bus, 16 * len(table.entries), chain, INDIRECT))
            continue
        count = min(draw(st.integers(1, 4)), room)
        for place in range(count):
            flags = direction | (NEXT if place + 1 < count else 0)
            descs.append(Desc(*draw(buffers(write=write)), chain, flags))
    event = (draw(st.integers(0, 3)), draw(st.integers(0, size)) | draw(st.sampled_from([0, WRAP])))
    program = PackedProgram(size, features, start, descs, tables, event)
    return _mutated(draw, program) if hostile and draw(st.integers(0, 3)) else program


def _table(draw: st.DrawFn, index: int, size: int, direction: int, *, write: bool) -> Table:
    """Entries of which only WRITE counts: id and the other flags are noise (2.8.7)."""
    entries = []
    for _ in range(draw(st.integers(1, min(size, 4)))):
        noise = draw(st.integers(0, 0xFFFF)) & ~WRITE
        entries.append((*draw(buffers(write=write)), draw(st.integers(0, 99)), direction | noise))
    return Table(DATA_SEAM - 4 * 64 - 32 + 64 * index, entries)


def _mutated(draw: st.DrawFn, program: PackedProgram) -> PackedProgram:
    descs, size = list(program.descs), program.size
    tables = [Table(table.bus, list(table.entries)) for table in program.tables]
    for _ in range(draw(st.integers(1, 4))):
        index = draw(st.integers(0, len(descs) - 1))
        desc = descs[index]
        address, length, buffer_id, flags = desc.address, desc.length, desc.id, desc.flags
        field = draw(st.sampled_from(["address", "length", "id", "flags", "flags", "table"]))
        if field == "address":
            address = draw(BAD_ADDRESSES | FAR_ADDRESSES)
        elif field == "length":
            length = draw(st.one_of(BAD_LENGTHS, st.sampled_from([16 * size, 16 * (size + 1)])))
        elif field == "id":
            buffer_id = draw(st.sampled_from([0, size, 0x8000, 0xFFFF]))
        elif field == "flags":
            flags ^= draw(_FLIPS)
        elif tables:
            entries = draw(st.sampled_from(tables)).entries
            entry = entries[-1]
            entries[-1] = (draw(BAD_ADDRESSES), entry[1], entry[2], entry[3] ^ draw(_FLIPS))
        descs[index] = Desc(address, length, buffer_id, flags)
    # Rarely, every place goes on: a list without end (2.8.17).
    if draw(st.integers(0, 9)) == 0:
        descs += [descs[-1]] * (size - len(descs))
        descs = [Desc(d.address, d.length, d.id, d.flags | NEXT) for d in descs]
    return PackedProgram(size, program.features, program.start, descs, tables, program.event)
