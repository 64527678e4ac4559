"""Files that are removed once they are old. Others may commit, replace or remove files at the same time."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)
# How old a blob without a row must be before it is collected: its transaction may be in progress.
UNREFERENCED_SECONDS = 24 * 3600


def files_below(folder: Path) -> Iterator[Path]:
    """Yields the files of a folder's subfolders."""
    for sub in list(folder.iterdir()):
        inside: list[Path] = []
        with skip_errors(sub):
            inside = list(sub.iterdir())
        yield from inside


def is_old(path: Path) -> bool:
    """Returns whether a file was neither written nor touched for so long that it may be collected."""
    with skip_errors(path):
        return path.stat().st_mtime < time.time() - UNREFERENCED_SECONDS
    return False


def file_size(path: Path) -> int:
    """Returns the size of a file in bytes; 0 if there is none."""
    with skip_errors(path):
        return path.stat().st_size
    return 0


def remove_if_old(path: Path) -> int | None:
    """Removes a file if it is old; returns its size if it was removed."""
    with skip_errors(path):
        if is_old(path):
            size = path.stat().st_size
            path.unlink()
            return size
    return None


@contextmanager
def skip_errors(path: Path) -> Iterator[None]:
    """Ends the block at an error, so that one path does not stop the others.

    A path that is gone was removed or committed meanwhile; any other error is logged.
    """
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("%s stays as it is: %s", path, error)
