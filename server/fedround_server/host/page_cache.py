"""The kernel's cache of file contents: when it is written to disk, and when it is no longer needed."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from pathlib import Path

STEP = 8 << 20
"""Bytes after which the disk is told to begin."""
# <fcntl.h> of Linux.
SYNC_FILE_RANGE_WRITE = 2


def _find() -> Callable[[int, int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


_SYNC_FILE_RANGE = _find()


class Writeback:
    """Starts writing a growing file to disk early, so that its fsync does not have to wait for all of it.

    It guarantees nothing: the file is on disk after the fsync. Does nothing where the system has no such call.
    """

    def __init__(self, descriptor: int, position: int = 0) -> None:
        """Begins at a position in an open file, in bytes."""
        self._descriptor = descriptor
        self._begun = position

    def grown(self, position: int) -> None:
        """Records that the file is written up to a position, in bytes."""
        if position - self._begun >= STEP:
            if _SYNC_FILE_RANGE is not None:
                _SYNC_FILE_RANGE(self._descriptor, self._begun, position - self._begun, SYNC_FILE_RANGE_WRITE)
            self._begun = position


def drop_cached_pages(path: Path) -> None:
    """Tells the kernel that a file, which is on disk, will hardly be read again.

    The next file reuses its pages. Otherwise each file gets pages that were not used before, as long as there are some:
    in a virtual machine, writing to those takes five times as long. Mapped pages stay. Does nothing where the system
    has no such call.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


@contextmanager
def keep_open(path: Path, closer: Executor) -> Iterator[None]:
    """Keeps a file open that the block may replace, so that the old one is freed in a thread of `closer`.

    Freeing a large file takes a tenth of a second, which a participant that repeats its update would wait for.
    """
    descriptor: int | None = None
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
    try:
        yield
    finally:
        if descriptor is not None:
            # Fails while the interpreter exits, which closes the file, too.
            with suppress(RuntimeError):
                closer.submit(os.close, descriptor)
