"""What the system keeps of files in memory."""

import os
from pathlib import Path


def is_in_memory(path: Path) -> bool:
    """Whether a file can be read without the disk; False, too, where the system or the file system cannot tell."""
    with path.open("rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT) == 1
        except (OSError, AttributeError):
            return False
