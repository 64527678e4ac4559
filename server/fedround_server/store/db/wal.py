"""Notices that SQLite's write-ahead log has lost changes that were committed.

SQLite takes a log that was cut, or is damaged, for one whose last transaction was not committed, and forgets what is
missing. The index of the log, which a killed process leaves beside it, still says how many pages were committed. The
formats are those of
https://www.sqlite.org/walformat.html.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

LOG_HEADER, FRAME_HEADER = 32, 24
WORD_ORDERS = {0x377F0682: "<", 0x377F0683: ">"}
"""The byte order of what is summed, by the number that a log begins with."""
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
    frames, salts = _read_log(log, index)
    if salts not in (b"", index.salts):
        # It was begun anew.
        return
    if frames < index.committed and (frames or index.copied < index.committed):
        raise RuntimeError(
            f"{log} was cut or damaged: it has {frames} of {index.committed} pages of committed changes: restore the"
            f" data directory from a backup; to go on without the changes that are missing, remove {shared} and start"
            " again"
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


def _read_log(path: Path, index: _Index) -> tuple[int, bytes]:
    """Returns how many of the committed pages a log begins with, and its salts; none if its header is damaged."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return 0, b""
    with file:
        header = file.read(LOG_HEADER)
        order = WORD_ORDERS.get(int.from_bytes(header[:4], "big"))
        if len(header) < LOG_HEADER or order is None:
            return 0, b""
        sums, salts = _add(header[:24], order, (0, 0)), header[16:24]
        if struct.pack(">2I", *sums) != header[24:]:
            return 0, b""
        for number in range(index.committed):
            frame = file.read(FRAME_HEADER + index.page_size)
            if len(frame) < FRAME_HEADER + index.page_size:
                return number, salts
            sums = _add(frame[:8] + frame[FRAME_HEADER:], order, sums)
            if frame[8:FRAME_HEADER] != salts + struct.pack(">2I", *sums):
                return number, salts
        return index.committed, salts


def _add(data: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    """Returns the sums of a log's checksum after more bytes."""
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
