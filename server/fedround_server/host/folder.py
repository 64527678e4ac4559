"""Folders on disk."""

import stat
from pathlib import Path

from fedround_server.host.sync import sync_folder

PRIVATE = 0o700
TOO_WIDE = stat.S_IWGRP | stat.S_IRWXO
"""What nobody but the owner may do with the data: PostgreSQL lets a group read its own, for backups."""


def make_private(folder: Path) -> None:
    """Makes a folder, and the folders above it that are missing, for their owner alone whatever the umask says."""
    if folder.is_dir():
        return
    make_private(folder.parent)
    folder.mkdir(mode=PRIVATE, exist_ok=True)
    folder.chmod(PRIVATE)


def make_durable(folder: Path) -> None:
    """Makes a folder as `make_private` does, and forces its entry to disk, if it is missing."""
    if not folder.exists():
        make_private(folder)
        sync_folder(folder.absolute().parent)


def make_narrow(folder: Path) -> bool:
    """Takes all rights from group and others if these may write, or others may do anything.

    Returns:
        Whether the rights were too wide.

    Raises:
        OSError: They are, and the folder belongs to another user.
    """
    if not folder.stat().st_mode & TOO_WIDE:
        return False
    folder.chmod(PRIVATE)
    return True
