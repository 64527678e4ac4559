"""Small files of the owner alone: a secret, and the id of a place, which the first server that uses it makes."""

import fcntl
import os
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

from fedround_server.host.sync import sync_file, sync_folder


def write_secret(path: Path, secret: str) -> None:
    """Writes a file, durably, in place: it may be a mount of its own."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    _fill(descriptor, secret)
    sync_folder(path.parent)


def read_id(path: Path) -> str:
    """Returns the id in a file; makes both, durably, if it is missing or empty."""
    return keep_first(path, str(uuid.uuid4()))


def keep_first(path: Path, text: str) -> str:
    """Returns what is in a file; if it is missing or empty, writes it, durably. Several servers may do so at once."""
    while not (found := _read(path)):
        descriptor, new = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
        try:
            _fill(descriptor, text)
            _remove_empty(path)
            # The first one stays.
            with suppress(FileExistsError):
                os.link(new, path)
        finally:
            os.unlink(new)  # noqa: PTH108 -- a string
        sync_folder(path.parent)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""


def _remove_empty(path: Path) -> None:
    """Removes a file that is empty, and not another one that has taken its place meanwhile."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not file.read().strip() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            path.unlink()


def _fill(descriptor: int, text: str) -> None:
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)
        file.write(text + "\n")
        file.flush()
        sync_file(descriptor)
