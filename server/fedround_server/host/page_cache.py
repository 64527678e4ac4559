"""What the system keeps of files in memory: when it goes to disk, and when it is needed no more."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

STEP = 8 << 20
"""Bytes that the disk is given at a time."""
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
_CLOSING = ThreadPoolExecutor(1, thread_name_prefix="closing")


class Writeback:
    """Tells the disk to begin while a file grows, so that its fsync does not have to wait for all of it.

    It promises nothing: what is on disk is known after the fsync. Where the system has no such call, nothing happens.
    """

    def __init__(self, descriptor: int, position: int = 0) -> None:
        """Begins at a position in an open file, in bytes."""
        self._descriptor = descriptor
        self._begun = position

    def grown(self, position: int) -> None:
        """Notes that the file is written up to a position."""
        if position - self._begun >= STEP:
            if _SYNC_FILE_RANGE is not None:
                _SYNC_FILE_RANGE(self._descriptor, self._begun, position - self._begun, SYNC_FILE_RANGE_WRITE)
            self._begun = position


def drop_cached_pages(path: Path) -> None:
    """Tells the system that a file, which is on disk, will hardly be read again.

    What it kept of the file in memory is taken for the next one. Else each file gets memory that nobody used before, as
    long as there is some: in a virtual machine, writing to that takes five times as long. What somebody has mapped
    stays. Where the system has no such call, nothing happens.
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
def keep_open(path: Path) -> Iterator[None]:
    """Has the system keep a file that the block may replace, and free it in a thread that nobody waits for.

    Freeing a large one takes a tenth of a second: so long would wait who sends an update again, whose receipt was lost.
    """
    descriptor: int | None = None
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
    try:
        yield
    finally:
        if descriptor is not None:
            # Not closed here if there are no more threads: what waits is closed by the next one.
            with suppress(RuntimeError):
                _CLOSING.submit(os.close, descriptor)
