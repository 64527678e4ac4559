"""The data directory: its rights, its lock, its disk, and the file admin.token."""

import fcntl
import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from fedround_server.config import Settings
from fedround_server.doctor.finding import Finding, size
from fedround_server.host.folder import TOO_WIDE

SOON = 2
"""Below how many times the least free space there is a note."""


def check_folder(data_dir: Path) -> Finding:
    """Checks that the data directory is a folder of this user's that others cannot write."""
    name = "data directory"
    try:
        status = data_dir.stat()
    except FileNotFoundError:
        return Finding(name, "note", f"{data_dir} does not exist: the first start of a server makes it")
    except OSError as error:
        return Finding(
            name, "fail", f"{data_dir} cannot be looked at ({error.strerror}): run this as the server's user"
        )
    if not stat.S_ISDIR(status.st_mode):
        return Finding(name, "fail", f"{data_dir} is a file: move it away, or choose another data directory")
    owner = _user(status.st_uid)
    if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
        return Finding(
            name, "fail", f"{data_dir} belongs to {owner}, and this user, {_user(os.geteuid())}, cannot use it"
        )
    mode = f"mode {stat.S_IMODE(status.st_mode):04o}, of {owner}"
    if status.st_mode & TOO_WIDE:
        return Finding(name, "fail", f"{data_dir}, {mode}: others have access to it: run chmod 700 {data_dir}")
    if status.st_uid != os.geteuid():
        return Finding(name, "note", f"{data_dir}, {mode}: run the server as this user, too")
    return Finding(name, "ok", f"{data_dir.resolve()}, {mode}")


def is_locked(data_dir: Path) -> bool:
    """Returns whether a server uses the data directory; its lock is tried for an instant, and shared.

    Raises:
        OSError: The directory cannot be opened.
    """
    descriptor = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def check_disk(settings: Settings) -> Iterator[Finding]:
    """Checks the free space, and the size of all files against its limit."""
    free, least = shutil.disk_usage(settings.data_dir).free, settings.min_free_bytes
    space = f"{size(free)} free"
    if free < least // 2:
        yield Finding("disk", "fail", f"{space}: models and updates are refused below {size(least / 2)}: make room")
    elif free < least:
        yield Finding("disk", "fail", f"{space}: models are refused below {size(least)} (min_free_bytes): make room")
    elif free < SOON * least:
        yield Finding("disk", "note", f"{space}: models will be refused below {size(least)} (min_free_bytes)")
    else:
        yield Finding("disk", "ok", f"{space}; models are refused below {size(least)}")
    stored, most = _stored_bytes(settings.data_dir), settings.max_stored_bytes
    share = f"{size(stored)} of at most {size(most)} (max_stored_bytes)"
    if stored >= most:
        yield Finding("stored files", "fail", f"{share}: models are refused: remove some, or raise the limit")
    else:
        yield Finding("stored files", "note" if stored > 0.9 * most else "ok", share)


def _stored_bytes(data_dir: Path) -> int:
    total = 0
    for folder in (data_dir / "objects").glob("*"):
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    total += entry.stat().st_size
                except FileNotFoundError:
                    # A running server has collected it.
                    continue
    return total


def check_token_file(path: Path) -> tuple[Finding | None, str]:
    """Checks the rights on admin.token; returns what is wrong with the file, and the token in it."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        token = path.read_text().strip()
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return Finding("admin.token", "note", f"{path} cannot be read: {error.strerror}"), ""
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        problem = f"{path} has mode {mode:04o}: others may read it: run chmod 600 {path}, and rotate the token"
        return Finding("admin.token", "fail", problem), token
    return None, token


def _user(user_id: int) -> str:
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return f"user {user_id}"
