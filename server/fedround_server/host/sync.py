"""Forces files and folders to disk, unless this process need not: its data are temporary."""

import ctypes
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

REPORTING_KERNEL = (5, 8)
"""Since which version of Linux syncfs(2) reports that something could not be written."""
_is_needed = True


def _find() -> Callable[[int], int] | None:
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if not sys.platform.startswith("linux") or version is None:
        return None
    if tuple(map(int, version.groups())) < REPORTING_KERNEL:
        return None
    function: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "syncfs", None)
    return function


_SYNCFS = _find()


def is_sync_needed() -> bool:
    """Returns whether this process forces anything to disk."""
    return _is_needed


def skip_syncs() -> None:
    """Forces nothing to disk from now on: what a crash of the machine loses is not missed."""
    global _is_needed
    _is_needed = False


def sync_file(descriptor: int) -> None:
    """Forces an open file to disk."""
    if _is_needed:
        os.fsync(descriptor)


def sync_data(descriptor: int) -> None:
    """Forces the bytes of an open file to disk, and of its metadata what is needed to read them."""
    if _is_needed:
        # macOS does not have it.
        getattr(os, "fdatasync", os.fsync)(descriptor)


def sync_file_system(descriptor: int) -> bool:
    """Forces everything on the file system of an open file or folder to disk.

    Returns:
        Whether all that was written since the descriptor was opened is on disk. If not, or if this system cannot tell,
        each file has to be written anew.
    """
    if not _is_needed:
        return True
    return _SYNCFS is not None and _SYNCFS(descriptor) == 0


def sync_folder(folder: Path) -> None:
    """Forces a folder's entries to disk: which names it has, and for which files."""
    if not _is_needed:
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
