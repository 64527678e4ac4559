"""Advisory locks on files, which end with the process that holds them."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BACKUP_LOCK = "backup.lock"
"""The file in a data directory that backups lock, shared: no blob is collected meanwhile."""


@contextmanager
def try_exclusive(path: Path) -> Iterator[bool]:
    """Holds a lock for the duration of the block; yields False, at once, if another holder has it.

    A file system that has no locks is taken for one without held locks.
    """
    with _opened(path) as descriptor:
        is_free = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_free = False
        except OSError:
            pass
        yield is_free


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Holds a lock for the duration of the block, together with others that share it; waits for an exclusive holder.

    Raises:
        OSError: The file cannot be opened, or its file system has no locks.
    """
    with _opened(path) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        yield descriptor
    finally:
        with suppress(OSError):
            os.close(descriptor)
