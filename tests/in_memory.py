"""What the system keeps of files in memory."""

import ctypes
import mmap
from pathlib import Path

import numpy as np

_C = ctypes.CDLL(None)


def is_in_memory(path: Path) -> bool:
    """Whether any page of a file is in memory; False, too, where the system does not report it.

    A non-blocking read would show it as well, but makes the system fetch the file.
    """
    if not hasattr(_C, "mincore"):
        return False
    mapped = np.memmap(path, mode="r")
    pages = (ctypes.c_ubyte * -(-mapped.size // mmap.PAGESIZE))()
    if _C.mincore(ctypes.c_void_p(mapped.ctypes.data), ctypes.c_size_t(mapped.size), pages) != 0:
        return False
    return any(page & 1 for page in pages)
