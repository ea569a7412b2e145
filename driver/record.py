"""Little-endian fields at fixed offsets, as `struct` reads them and as numpy shows them.

The driver reads with `struct`: importing numpy takes longer than attaching to a function does.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Record:
    """One record: unsigned fields, by offset, with nothing but padding between them.

    Args:
        fields: Name, offset and size in bytes of each.
        itemsize: Of the whole record, in bytes.
    """

    def __init__(self, fields: tuple[tuple[str, int, int], ...], itemsize: int) -> None:
        self.fields = fields
        self.itemsize = itemsize

    @property
    def names(self) -> tuple[str, ...]:
        """Of the fields."""
        return tuple(name for name, _, _ in self.fields)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The same, for numpy; which takes this object itself for a dtype, too."""
        import numpy as np  # noqa: PLC0415 - where somebody asks for it

        names, offsets, sizes = zip(*self.fields, strict=True)
        formats = [f"<u{size}" for size in sizes]
        return np.dtype(
            {"names": names, "formats": formats, "offsets": offsets, "itemsize": self.itemsize}
        )

    def rows(self, data: bytes, count: int, stride: int) -> list[tuple[int, ...]]:
        """The fields' values, in order, of count records at the beginning of data.

        Args:
            data: Private memory of count * stride bytes or more.
            count: How many.
            stride: From one record to the next, itemsize or more.
        """
        return list(struct.iter_unpack(self._format(stride), data[: count * stride]))

    def _format(self, stride: int) -> str:
        code, end = "<", 0
        for _, offset, size in self.fields:
            code += f"{offset - end}x{_CODES[size]}"
            end = offset + size
        return f"{code}{stride - end}x"

    def packed(self, rows: Iterable[Sequence[int]]) -> bytes:
        """The same, as they lie in memory one after the other; padding is zero."""
        layout = struct.Struct(self._format(self.itemsize))
        return b"".join(layout.pack(*row) for row in rows)
