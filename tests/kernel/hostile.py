"""Strategies for rings: mostly legal ones, and ways a hostile VM1 breaks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.kernel.rig import (
    BIG,
    BIG_SIZE,
    DATA,
    DATA_END,
    DATA_SEAM,
    INDIRECT,
    MORE,
    NEXT,
    READ_ONLY,
    READ_ONLY_END,
    TOP,
    WRITE,
    Rig,
)

Desc = tuple[int, int, int, int]

# Buffers lie anywhere but in the ring's own parts, whose content depends on how turns are cut.
_SPANS = [(DATA, DATA_SEAM), (DATA, DATA_END), (DATA_SEAM - 64, DATA_END), (MORE, READ_ONLY)]
_LENGTHS = st.one_of(
    st.integers(0, 40), st.sampled_from([10, 12, 14, 26, 60, 1514]), st.integers(0, 2000)
)
BAD_ADDRESSES = st.sampled_from(
    [0, 1, DATA - 1, DATA_END - 1, DATA_END, READ_ONLY - 5, READ_ONLY, READ_ONLY_END - 1, TOP]
)
FAR_ADDRESSES = st.sampled_from(
    [BIG + BIG_SIZE - 20, (1 << 64) - 1, (1 << 64) - 16, (1 << 64) - 1515, 1 << 63]
)
BAD_LENGTHS = st.sampled_from([0, 1, 15, 16, 17, 0x7FFFFFFF, 0xFFFFFFF0, 0xFFFFFFFF])
BURSTS = st.sampled_from([1, 2, 3, 32, 256])
FRAMES = st.lists(  # that a VF has for VM1
    st.builds(
        lambda length, first: bytes((first + i) % 256 for i in range(length)),
        st.one_of(st.integers(14, 100), st.integers(14, 3000), st.sampled_from([1514, 8000])),
        st.integers(0, 255),
    ),
    max_size=12,
)
_BAD_INDICES = st.sampled_from([0x7FFF, 0x8000, 0xFFFF])


@dataclass(frozen=True)
class Table:
    """An indirect table, to be poked at bus."""

    bus: int
    entries: list[Desc]


@dataclass(frozen=True)
class Program:
    """What VM1 wrote before it published its available index."""

    size: int
    features: dict[str, Any]
    start: int
    descs: list[Desc]
    tables: list[Table]
    heads: list[int]
    jump: int  # added to the index that the heads would give

    def rig(self, *, far: bool = True) -> Rig:
        """A rig in this state."""
        rig = Rig(self.size, far=far, **self.features)
        rig.set_index(self.start)
        for index, desc in enumerate(self.descs):
            rig.desc(index, *desc)
        for table in self.tables:
            rig.table(table.bus, *table.entries)
        rig.make_available(*self.heads)
        return rig

    def publish(self, rig: Rig) -> None:
        """The jump: after kernel and oracle have begun, or they would refuse to."""
        rig.index = (rig.index + self.jump) % 65536
        rig.make_available()


@st.composite
def buffers(draw: st.DrawFn, *, write: bool) -> tuple[int, int]:
    """Address and length inside VM1's memory; on the seam, at an end, or anywhere."""
    spans = _SPANS if write else [*_SPANS, (MORE, READ_ONLY_END), (TOP, 1 << 64)]
    begin, end = draw(st.sampled_from(spans))
    length = min(draw(_LENGTHS), end - begin)
    at_end = draw(st.booleans())
    address = end - length if at_end else draw(st.integers(begin, end - length))
    return min(address, (1 << 64) - 1), length


@st.composite
def rings(draw: st.DrawFn, *, write: bool, hostile: bool = True) -> Program:
    """A ring's content; hostile: with mutations."""
    size = draw(st.sampled_from([1, 2, 4, 8, 8, 16, 32, 128]))
    mergeable = write and draw(st.booleans())
    features = {
        "header_bytes": 12 if mergeable else draw(st.sampled_from([10, 12])),
        "indirect": draw(st.sampled_from([True, True, False])),
        "event_idx": draw(st.booleans()),
        "mergeable": mergeable,
        "mtu": draw(st.sampled_from([0, 0, 68, 1500])),
    }
    start = draw(st.one_of(st.integers(65536 - 2 * size, 65535), st.integers(0, 65535)))
    direction = WRITE if write else 0
    # Descriptors that no chain uses are noise of the same kind: a wrong next finds something there.
    filler = draw(buffers(write=write))
    descs: list[Desc] = [(*filler, direction, 0)] * size
    free = draw(st.permutations(range(size)))
    heads: list[int] = []
    tables: list[Table] = []
    for _ in range(draw(st.integers(1, min(size, 8)))):
        if not free:
            break
        count = min(draw(st.integers(1, 4)), len(free))
        chain, free = free[:count], free[count:]
        heads.append(chain[0])
        for here, after in zip(chain, [*chain[1:], None], strict=True):
            more = 0 if after is None else NEXT
            descs[here] = (*draw(buffers(write=write)), direction | more, after or 0)
        if features["indirect"] and draw(st.booleans()):
            table = _table(draw, len(tables), size, direction, write=write)
            tables.append(table)
            descs[chain[-1]] = (table.bus, 16 * len(table.entries), INDIRECT, 0)
    program = Program(size, features, start, descs, tables, heads, 0)
    return _mutated(draw, program) if hostile and draw(st.integers(0, 3)) else program


def _table(draw: st.DrawFn, index: int, size: int, direction: int, *, write: bool) -> Table:
    count = draw(st.integers(1, min(size, 4)))
    entries: list[Desc] = []
    for i in range(count):
        more = NEXT if i + 1 < count else 0
        entries.append((*draw(buffers(write=write)), direction | more, i + 1))
    # Eight tables of 64 bytes; the fifth lies across the seam.
    return Table(DATA_SEAM - 4 * 64 - 32 + 64 * index, entries)


def _broken(draw: st.DrawFn, desc: Desc, size: int) -> Desc:
    address, length, flags, after = desc
    field = draw(st.sampled_from(["address", "length", "flags", "next", "loop"]))
    if field == "address":
        address = draw(BAD_ADDRESSES | FAR_ADDRESSES)
    elif field == "length":
        length = draw(st.one_of(BAD_LENGTHS, st.sampled_from([16 * size, 16 * (size + 1), 66000])))
    elif field == "flags":
        flips = [NEXT, WRITE, WRITE | NEXT, INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE, 0xFFF8]
        flags ^= draw(st.sampled_from(flips))
    elif field == "next":
        flags |= NEXT
        after = draw(st.one_of(st.integers(0, size + 1), _BAD_INDICES))
    else:
        flags |= NEXT
        after = draw(st.integers(0, size - 1))
    return address, length, flags, after


def _mutated(draw: st.DrawFn, program: Program) -> Program:
    size = program.size
    descs, heads, jump = list(program.descs), list(program.heads), 0
    tables = [Table(table.bus, list(table.entries)) for table in program.tables]
    for _ in range(draw(st.integers(1, 4))):
        what = draw(st.sampled_from(["desc", "desc", "desc", "table", "table", "head", "jump"]))
        if what == "desc":
            index = draw(st.one_of(st.integers(0, size - 1), st.sampled_from(heads))) % size
            descs[index] = _broken(draw, descs[index], size)
        elif what == "table" and tables:
            entries = draw(st.sampled_from(tables)).entries
            index = draw(st.integers(0, len(entries) - 1))
            entries[index] = _broken(draw, entries[index], len(entries))
        elif what == "head":
            index = draw(st.integers(0, len(heads) - 1))
            heads[index] = draw(st.one_of(st.integers(0, size + 1), _BAD_INDICES))
        elif what == "jump":
            jump = draw(st.sampled_from([-1, 1, size, size + 1, 32768]))
    return Program(size, program.features, program.start, descs, tables, heads, jump)
