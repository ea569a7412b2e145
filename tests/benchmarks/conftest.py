"""What every benchmark needs: huge pages where the kernel grants them, given back at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

NR_HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")
WANTED = 256  # of 2 MiB: testpmd's and VM1's


@pytest.fixture(scope="session")
def huge_pages() -> Iterator[bool]:
    """Whether enough huge pages are reserved; reserves them if it may."""
    before = NR_HUGEPAGES.read_text()
    try:
        NR_HUGEPAGES.write_text(str(max(WANTED, int(before))))
    except OSError:
        yield int(before) >= WANTED
        return
    yield int(NR_HUGEPAGES.read_text()) >= WANTED
    NR_HUGEPAGES.write_text(before)
