"""Advisory locks on files, which end with the process that holds them."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

BACKUP_LOCK = "backup.lock"
"""The file beside the objects that backups lock, shared: no blob is collected meanwhile."""
OBJECTS_LOCK = "objects.lock"
"""The file beside the objects that servers which share them lock, exclusively to remove a blob, else to commit one."""


class SharedLock:
    """A lock on a file that stays open until the process ends. One thread at a time may use it."""

    def __init__(self, path: Path) -> None:
        """Opens the file, and makes it.

        Raises:
            OSError: It cannot be opened, or its file system has no locks.
        """
        self._descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        with self.holding(is_exclusive=False):
            pass

    @contextmanager
    def holding(self, *, is_exclusive: bool) -> Iterator[None]:
        """Holds the lock within the block, together with others that share it, or alone; waits for other processes."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX if is_exclusive else fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)


def beside_objects(data_dir: Path, name: str) -> Path:
    """Returns the path of a file beside the objects of a data directory, which may be a link to those of others."""
    return (data_dir / "objects").resolve().parent / name


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
def locked_folder(data_dir: Path) -> Iterator[tuple[int, ...]]:
    """Locks a data directory for the duration of the block: two servers on one would both recover the same rounds.

    The directory itself is locked, since the file may be deleted; the file is for file systems that cannot lock it.

    Yields:
        The descriptors that have the lock, together with processes that inherit them.

    Raises:
        RuntimeError: A server uses it.
        OSError: It cannot be opened.
    """
    with ExitStack() as stack:
        locks = []
        for path, flags in ((data_dir, os.O_RDONLY | os.O_DIRECTORY), (data_dir / "lock", os.O_CREAT | os.O_RDWR)):
            descriptor = os.open(path, flags, 0o600)
            stack.callback(os.close, descriptor)
            locks.append(descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RuntimeError(f"another server uses the data directory {data_dir}: choose another one") from error
            except OSError:
                if path != data_dir:
                    raise
        yield tuple(locks)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        yield descriptor
    finally:
        with suppress(OSError):
            os.close(descriptor)
