"""Forces files and folders to disk, unless this process need not: its data are temporary."""

import os
from pathlib import Path

_is_needed = True


def skip_syncs() -> None:
    """Forces nothing to disk from now on: what a crash of the machine loses is not missed."""
    global _is_needed
    _is_needed = False


def sync_file(descriptor: int) -> None:
    """Forces an open file to disk."""
    if _is_needed:
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Forces a folder's entries to disk: which names it has, and for which files."""
    if not _is_needed:
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
