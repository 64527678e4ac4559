"""Notices that SQLite's write-ahead log has lost changes that were committed.

SQLite takes a log that was cut for one whose last transaction was not committed, and forgets what is missing. The index
of the log, which a killed process leaves beside it, still says how many pages were committed. The formats are those of
https://www.sqlite.org/walformat.html.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

LOG_HEADER, FRAME_HEADER = 32, 24
INDEX_HEADER = struct.Struct("=12x B x H I 12x 8s 8x")
"""Of one of two equal copies: whether it is valid, the page size, the committed pages, and the salts."""
COPIED = struct.Struct("=I")
"""Behind both copies: how many of the pages were copied into the database."""


@dataclass(frozen=True, slots=True)
class _Index:
    page_size: int
    committed: int
    salts: bytes
    copied: int


def check_log(database: Path) -> None:
    """Checks the write-ahead log of a SQLite database, before it is opened.

    Raises:
        RuntimeError: The log has fewer pages than were committed.
    """
    log, shared = (database.with_name(database.name + end) for end in ("-wal", "-shm"))
    index = _read_index(shared)
    if index is None or index.committed == 0:
        return
    size, salts = _read_log(log)
    if size >= LOG_HEADER and salts != index.salts:
        # It was begun anew.
        return
    frames = max(0, size - LOG_HEADER) // (FRAME_HEADER + index.page_size)
    if frames < index.committed and (frames or index.copied < index.committed):
        raise RuntimeError(
            f"{log} was cut: it has {frames} of {index.committed} pages of committed changes: restore the data"
            f" directory from a backup; to go on without the changes that are missing, remove {shared} and start again"
        )


def _read_index(path: Path) -> _Index | None:
    """Returns what an index says; None if there is none, or none that is valid."""
    size = INDEX_HEADER.size
    try:
        with path.open("rb") as file:
            data = file.read(2 * size + COPIED.size)
    except FileNotFoundError:
        return None
    if len(data) < 2 * size + COPIED.size or data[:size] != data[size : 2 * size]:
        return None
    is_valid, page_size, committed, salts = INDEX_HEADER.unpack_from(data)
    if not is_valid:
        return None
    (copied,) = COPIED.unpack_from(data, 2 * size)
    # 64 KiB don't fit into the field.
    return _Index(65536 if page_size == 1 else page_size, committed, salts, copied)


def _read_log(path: Path) -> tuple[int, bytes]:
    """Returns the size of a log in bytes, and its salts."""
    try:
        with path.open("rb") as file:
            return path.stat().st_size, file.read(LOG_HEADER)[16:24]
    except FileNotFoundError:
        return 0, b""
