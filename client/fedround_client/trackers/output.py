"""What outputs of trackers share: one writer at a time, and errors."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

import grpc

from fedround_client.errors import TrackerFailed

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def failed(message: str) -> TrackerFailed:
    """Returns the exception for an output that cannot be used."""
    return TrackerFailed(grpc.StatusCode.FAILED_PRECONDITION, "TRACKER_FAILED", message)


def lock(file: BinaryIO, path: Path) -> None:
    """Keeps other trackers from a file until it is closed; does nothing on Windows.

    Raises:
        TrackerFailed: Another tracker writes to it.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise failed(f"Another tracker writes to {path}: choose another --output.") from None


def sync_folder(path: Path) -> None:
    """Makes the names in a folder survive a loss of power, where the system can do that."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
