"""The initramfs writer, read back by the format's own rules."""

from __future__ import annotations

import io
import stat
from typing import TYPE_CHECKING, NamedTuple

from tools.lab.cpio import Archive

if TYPE_CHECKING:
    from pathlib import Path


class Entry(NamedTuple):
    """What the kernel sees of one entry."""

    mode: int
    owner: tuple[int, int]
    data: bytes


def _read(archive: bytes) -> dict[str, Entry]:
    """As init/initramfs.c of Linux: 6 characters of magic, 13 fields of 8, all 4-aligned."""
    found: dict[str, Entry] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        size, name_size = fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        at = (at + 110 + name_size + 3) & ~3
        if name == b"TRAILER!!!\0":
            assert at == len(archive)
            return found
        data = archive[at : at + size]
        found[name[:-1].decode()] = Entry(fields[1], (fields[2], fields[3]), data)
        at = (at + size + 3) & ~3


def test_a_tree_becomes_an_archive(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool").write_bytes(b"#!/bin/sh\n")
    (tmp_path / "bin" / "tool").chmod(0o755)
    (tmp_path / "plain").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("/nowhere")
    (tmp_path / "surplus").mkdir()
    (tmp_path / "surplus" / "file").touch()
    output = io.BytesIO()
    archive = Archive(output)
    archive.data("init", b"x", executable=True)
    archive.tree(tmp_path, frozenset({"surplus"}))
    archive.finish()
    root = (0, 0)
    assert _read(output.getvalue()) == {
        "init": Entry(stat.S_IFREG | 0o755, root, b"x"),
        "bin": Entry(stat.S_IFDIR | 0o755, root, b""),
        "bin/tool": Entry(stat.S_IFREG | 0o755, root, b"#!/bin/sh\n"),
        "link": Entry(stat.S_IFLNK | 0o777, root, b"/nowhere"),
        "plain": Entry(stat.S_IFREG | 0o644, root, b"12345"),
    }
