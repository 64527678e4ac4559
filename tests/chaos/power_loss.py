"""The machine loses power: what the system had not written to disk yet is missing, cut or changed.

A server that was killed leaves all that it had written. Small files are only known to be on disk through their entries
in the journal, so that a loss of power may take any of them. The journal is read here without the server's code.
"""

import hashlib
import os
import random
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from damage import flip, stored

HEADER = struct.Struct("<8sQ32s")
MAGIC = b"fedround"
BLOCK_BYTES = 4096


def lose_power(data_dir: Path, draw: random.Random, *, is_unsynced: bool) -> int:
    """Damages what a stopped server had not forced to disk; returns how many files.

    Args:
        data_dir: The server's.
        draw: Draws which files, and what becomes of each.
        is_unsynced: Whether the last group of the journal was not synced, and may be torn.
    """
    segments = sorted((data_dir / "journal").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    if is_unsynced and segments:
        *_, start = (position for position, _ in _entries(segments[-1]) if position % BLOCK_BYTES == 0)
        os.truncate(segments[-1], draw.randrange(start, segments[-1].stat().st_size))
    digests = {digest for segment in segments for _, digest in _entries(segment)}
    at_risk = [path for digest in sorted(digests) if (path := stored(data_dir, digest)).is_file()]
    lost = draw.sample(at_risk, draw.randint(min(1, len(at_risk)), len(at_risk)))
    for path in lost:
        _lose(path, draw)
    return len(lost)


def _entries(segment: Path) -> Iterator[tuple[int, str]]:
    """Yields where each entry of a segment begins, and its digest, up to the first that is torn."""
    data, position = segment.read_bytes(), 0
    while position + HEADER.size <= len(data):
        magic, size, digest = HEADER.unpack_from(data, position)
        end = position + HEADER.size + size
        if magic == MAGIC and hashlib.sha256(data[position + HEADER.size : end]).digest() == digest:
            yield position, digest.hex()
            position = end
        elif position % BLOCK_BYTES:
            position += -position % BLOCK_BYTES
        else:
            return


def _lose(path: Path, draw: random.Random) -> None:
    """Loses a file, with its folder if it is the only one there, or some of its bytes."""
    size = path.stat().st_size
    kind = draw.choice(["missing", "empty", "cut", "changed"])
    if kind == "missing" or not size:
        path.unlink()
        with suppress(OSError):
            path.parent.rmdir()
    elif kind == "changed":
        flip(path, draw.randrange(size))
    else:
        path.chmod(0o600)
        os.truncate(path, 0 if kind == "empty" else draw.randrange(size))
