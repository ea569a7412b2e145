"""An initramfs archive, format newc (Documentation/driver-api/early-userspace/buffer-format)."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

_ALIGNMENT = 4
_TRAILER = "TRAILER!!!"


class Archive:
    """Writes entries owned by root, of time 0; uncompressed, so that the kernel need not unpack.

    The file holds a complete archive once `finish` was called. Parents come before children.

    Args:
        file: Open for binary writing; the caller closes it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inode = 0

    def _entry(self, name: str, mode: int, data: bytes) -> None:
        self._inode += 1
        links = 2 if stat.S_ISDIR(mode) else 1
        encoded = os.fsencode(name) + b"\0"
        # ino, mode, uid, gid, nlink, mtime, filesize, major, minor, rmajor, rminor, namesize, chk
        fields = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._padded(header + encoded)
        self._padded(data)

    def _padded(self, data: bytes) -> None:
        self._file.write(data)
        self._file.write(bytes(-len(data) % _ALIGNMENT))

    def directory(self, name: str) -> None:
        """A directory, mode 0755; name is relative to the root, without a leading slash."""
        self._entry(name, stat.S_IFDIR | 0o755, b"")

    def link(self, name: str, target: str) -> None:
        """A symbolic link."""
        self._entry(name, stat.S_IFLNK | 0o777, os.fsencode(target))

    def data(self, name: str, data: bytes, *, executable: bool = False) -> None:
        """A regular file."""
        self._entry(name, stat.S_IFREG | (0o755 if executable else 0o644), data)

    def tree(self, root: Path, skip: frozenset[str] = frozenset()) -> None:
        """All below root: directories, links and regular files; nothing of another kind.

        Args:
            root: Stands for the archive's own root.
            skip: Paths relative to root that stay out, with what lies below them.
        """
        self._tree(root, "", skip)

    def _tree(self, directory: Path, prefix: str, skip: frozenset[str]) -> None:
        with os.scandir(directory) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            name = prefix + entry.name
            if name in skip:
                continue
            path = directory / entry.name
            if entry.is_symlink():
                self.link(name, str(path.readlink()))
            elif entry.is_dir():
                self.directory(name)
                self._tree(path, f"{name}/", skip)
            elif entry.is_file():
                executable = bool(entry.stat().st_mode & stat.S_IXUSR)
                self.data(name, path.read_bytes(), executable=executable)

    def finish(self) -> None:
        """The end of the archive; others may follow in the same file."""
        self._entry(_TRAILER, 0, b"")
