"""Errors of the operating system that keep a server from starting, in one sentence for the operator."""

import errno
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_FOLDER = (errno.ENOTDIR, errno.EEXIST)
ELSEWHERE = "or choose another data directory with --data-dir"


def explain(error: OSError, data_dir: Path) -> str:
    """Returns what failed, with the file, and what to do.

    Args:
        error: The error; one without a file is about the data directory.
        data_dir: The data directory.
    """
    path = Path(error.filename or data_dir)
    if error.errno in FULL:
        return f"the disk of {path} is full: make room, and start again, {ELSEWHERE}"
    if error.errno in FORBIDDEN:
        return (
            f"{path} cannot be written ({error.strerror}): give the server's user the right to, mount its file system"
            f" for writing, {ELSEWHERE}"
        )
    if error.errno in NO_FOLDER:
        file = next((one for one in (path, *path.parents) if one.exists() and not one.is_dir()), path)
        return f"{file} is a file, and the server needs a folder there: move it away, {ELSEWHERE}"
    if error.errno == errno.EISDIR:
        return f"{path} is a folder, and the server needs a file there: move it away, {ELSEWHERE}"
    return f"{path} cannot be used ({error.strerror or error}): check the file and its disk, {ELSEWHERE}"
