"""The blocks of memory that messages lie in."""

from __future__ import annotations

import ctypes
import os
import sys

# <malloc.h> of glibc.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
SET_BY_USERS = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}


def keep_freed(largest: int, kept: int) -> None:
    """Has the C library keep freed blocks for the next ones, from now on and in the whole process.

    By default those as large as a chunk of a file come from the system, page by page, and go back to it: clearing the
    pages takes three times as long as all else that a download does. Where there is no glibc, or the user has set this
    in the environment, nothing happens.

    Args:
        largest: Bytes of the largest blocks that are kept.
        kept: Bytes of free memory that are kept at the end of each heap.
    """
    if not sys.platform.startswith("linux") or not os.environ.keys().isdisjoint(SET_BY_USERS):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, largest)
        mallopt(M_TRIM_THRESHOLD, kept)
