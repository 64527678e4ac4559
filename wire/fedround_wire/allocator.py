"""Settings of the C library's memory allocator for the buffers of messages."""

from __future__ import annotations

import ctypes
import os
import sys

# <malloc.h> of glibc.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
USER_SETTINGS = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"}


def keep_freed(max_block_bytes: int, trim_threshold: int, max_heaps: int | None = None) -> None:
    """Makes malloc reuse freed blocks instead of returning them to the system, in the whole process from now on.

    By default a block as large as a chunk of a file is mapped by the kernel and unmapped when it is freed. Clearing the
    new pages takes three times as long as everything else that a download does. Nothing is changed where the C library
    is not glibc, or where the user has set the allocator in the environment.

    Args:
        max_block_bytes: Size of the largest blocks that are reused (M_MMAP_THRESHOLD).
        trim_threshold: Bytes of free memory that may remain at the end of each heap (M_TRIM_THRESHOLD).
        max_heaps: How many heaps the threads have (M_ARENA_MAX), each with free memory of its own; None for the
            default, which is eight for each processor. It counts for heaps that are made from now on.
    """
    if not sys.platform.startswith("linux") or not os.environ.keys().isdisjoint(USER_SETTINGS):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, max_block_bytes)
        mallopt(M_TRIM_THRESHOLD, trim_threshold)
        if max_heaps is not None:
            mallopt(M_ARENA_MAX, max_heaps)
