"""A file that one tracker appends to, line by line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from fedround_client.logs import get_logger
from fedround_client.trackers.output import lock, sync_folder

logger = get_logger(__name__)


class AppendFile:
    """A file of lines, of which the last one may not have been written to its end."""

    def __init__(self, path: Path) -> None:
        """Opens or creates a file, and locks it.

        Raises:
            OSError: It cannot be opened.
            TrackerFailed: Another tracker writes to it.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _opened(path)
        sync_folder(path.parent)
        logger.info("Writing to %s", path)

    def lines(self) -> list[bytes]:
        """Returns the lines; the last one has no end if it was not written to its end."""
        self._file.seek(0)
        return self._file.readlines()

    def cut(self, line: bytes) -> None:
        """Removes the last line."""
        self._file.truncate(self._file.seek(0, os.SEEK_END) - len(line))
        os.fsync(self._file.fileno())

    def append(self, line: bytes) -> None:
        """Appends a line, and returns once it is on the disk."""
        self._file.seek(0, os.SEEK_END)
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())

    def replace(self, content: bytes) -> None:
        """Replaces the content as a whole: whoever reads the file sees the old content or the new one."""
        new = self.path.with_name(self.path.name + ".new")
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # Windows does not replace files that are open.
        self._file.close()
        new.replace(self.path)
        sync_folder(self.path.parent)
        self._file = _opened(self.path)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def is_beginning(line: bytes, whole: bytes) -> bool:
    """Returns whether a line that was not written to its end is the beginning of another one.

    A machine that went down meanwhile may leave zeros at the end.
    """
    written = line.rstrip(b"\0")[: len(whole)]
    return whole.startswith(written)


def _opened(path: Path) -> BinaryIO:
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b")
    try:
        lock(file, path)
    except BaseException:
        file.close()
        raise
    return file
