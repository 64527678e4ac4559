"""What the system keeps of files in memory."""

import ctypes
import mmap
from pathlib import Path

import numpy as np

_C = ctypes.CDLL(None)


def is_in_memory(path: Path) -> bool:
    """Whether any page of a file is in memory; False, too, where the system cannot tell.

    A read that must not wait would tell as well, and has the system fetch the file meanwhile.
    """
    if not hasattr(_C, "mincore"):
        return False
    mapped = np.memmap(path, mode="r")
    pages = (ctypes.c_ubyte * -(-mapped.size // mmap.PAGESIZE))()
    if _C.mincore(ctypes.c_void_p(mapped.ctypes.data), ctypes.c_size_t(mapped.size), pages) != 0:
        return False
    return any(page & 1 for page in pages)
