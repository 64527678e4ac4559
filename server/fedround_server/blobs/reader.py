"""Local files that are being sent."""

import os
from contextlib import AbstractContextManager
from pathlib import Path

READ_AHEAD = 8 << 20
"""How much the disk is asked for at a time, in bytes."""
# Linux only.
RWF_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)


class LocalReader(AbstractContextManager["LocalReader", None]):
    """A file that is being sent, chunk by chunk. Its `with` block closes it."""

    def __init__(self, path: Path, offset: int, chunk_size: int) -> None:
        """Opens the file, which must not change, at an offset; each chunk but the last one has chunk_size bytes."""
        self._descriptor = os.open(path, os.O_RDONLY)
        self._end = os.fstat(self._descriptor).st_size
        self._position = offset
        self._buffer = bytearray(chunk_size)

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def read_cached(self) -> bytes | None:
        """Reads the next chunk if it is in the page cache; otherwise returns None and reads nothing.

        Reading from memory takes less time than waking a thread.
        """
        if RWF_NOWAIT is None:
            return None
        try:
            size = os.preadv(self._descriptor, [self._buffer], self._position, RWF_NOWAIT)
        except OSError:
            # Not in memory, or a file system that does not support the flag.
            return None
        if size < min(len(self._buffer), self._end - self._position):
            return None
        self._position += size
        return bytes(memoryview(self._buffer)[:size])

    def read(self) -> bytes:
        """Reads the next chunk, and starts reading ahead from the disk."""
        size = len(self._buffer)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, self._position, READ_AHEAD, os.POSIX_FADV_WILLNEED)
        chunk = b""
        while data := os.pread(self._descriptor, size - len(chunk), self._position):
            self._position += len(data)
            chunk += data
        return chunk
