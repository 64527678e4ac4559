"""Folders on disk."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Forces a folder's entries to disk: which names it has, and for which files."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
