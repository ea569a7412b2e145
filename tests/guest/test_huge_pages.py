"""Huge pages taken and given back, on a tree that stands for the kernel's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from guest.huge_pages import HugePageReserve

if TYPE_CHECKING:
    from pathlib import Path

PAGE = 2 << 20


def kernel(root: Path, *, reserved: int, free: int) -> Path:
    """A kernel with so many; returns the file that reserves them."""
    (root / "proc/sys/vm").mkdir(parents=True)
    facts = f"MemTotal: 1 kB\nHugePages_Free: {free}\nHugepagesize: 2048 kB\n"
    (root / "proc/meminfo").write_text(facts)
    file = root / "proc/sys/vm/nr_hugepages"
    file.write_text(f"{reserved}\n")
    return file


def test_what_is_missing_is_reserved_and_given_back(tmp_path: Path) -> None:
    file = kernel(tmp_path, reserved=10, free=3)
    with HugePageReserve(8 * PAGE - 1, tmp_path) as pages:
        assert file.read_text() == "15\n"
        assert not pages.enough  # this kernel had none to give
    assert file.read_text() == "10\n"
    pages.close()


def test_what_is_free_is_left_alone(tmp_path: Path) -> None:
    file = kernel(tmp_path, reserved=10, free=8)
    file.chmod(0o400)
    with HugePageReserve(8 * PAGE, tmp_path) as pages:
        assert pages.enough
    assert file.read_text() == "10\n"


@pytest.mark.parametrize("text", ["", "HugePages_Free: 9\n"])
def test_a_kernel_without_any(tmp_path: Path, text: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(text)
    with HugePageReserve(PAGE, tmp_path) as pages:
        assert not pages.enough
