"""How the C library keeps memory that was freed."""

import ctypes
import sys

# <malloc.h> of glibc.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST = 4 << 20
"""Blocks up to this size are taken again without asking the system; gRPC's messages and torch's blocks are smaller."""
KEPT = 32 << 20
"""How much free memory is kept at the end of each heap."""


def keep_freed_memory() -> None:
    """Has freed blocks as large as a chunk of a file kept for the next one.

    By default each of them comes from the system, page by page, and goes back to it: clearing the pages takes three
    times as long as all else that a download does. Where there is no glibc, nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, KEPT)
