"""Records as `struct` reads them are what numpy shows."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from driver.state_area import COMMIT, DRIVER, HEADER, MEMORY, RING

if TYPE_CHECKING:
    from driver.record import Record


@pytest.mark.parametrize("record", [HEADER, RING, MEMORY, DRIVER, COMMIT])
@pytest.mark.parametrize("surplus", [0, 1, 24])
def test_rows_are_what_numpy_shows(record: Record, surplus: int) -> None:
    stride = record.itemsize + surplus
    data = os.urandom(3 * stride)
    assert record.dtype.names == record.names
    shown = np.ndarray(3, record.dtype, data, strides=(stride,)).tolist()
    assert record.rows(data + b"more", 3, stride) == shown
    assert record.rows(data, 0, stride) == []
