"""Verifies stored files against the checksums of their blocks while they are read."""

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from fedround_server.blobs import BLOCK_BYTES, damaged, map_damage, open_blob, verify_block
from fedround_server.domain.model import BlobRef

SEGMENT_BLOCKS = 4
"""Blocks that are verified together: they are worth passing to a thread."""
SEGMENT_BYTES = SEGMENT_BLOCKS * BLOCK_BYTES


@contextmanager
def reading_ahead() -> Iterator[Executor]:
    """Yields a thread for verifiers; what it has not begun at the end of the block is not needed any more."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="verify")
    try:
        yield thread
    finally:
        thread.shutdown(cancel_futures=True)


class Verifier(AbstractContextManager["Verifier", None]):
    """Verifies the segments of a file, each before it is used first. Its `with` block closes the file.

    Several threads may use it.

    A segment is read with system calls: where the disk cannot read, that is an error. In memory that the file is mapped
    to, it would end the process.
    """

    def __init__(self, path: Path, blob: BlobRef, ahead: Executor | None = None) -> None:
        """Checks the size; a file without checksums, of an earlier version of the server, is verified at once.

        Args:
            path: The file.
            blob: What it should contain.
            ahead: Verifies each segment, while the one before it is used; it begins with the first one at once.

        Raises:
            BlobDamaged: The file is missing, or has another size, or another digest.
        """
        self._path = path
        self._blob = blob
        self._ahead = ahead
        self._running: dict[int, Future[None]] = {}
        self._verified: set[int] = set()
        self._lock = threading.Lock()
        self._file = open_blob(path, blob)
        try:
            if not blob.checksums:
                self._verify_digest()
            elif ahead is not None:
                self._begin(ahead, 0)
        except BaseException:
            self._file.close()
            raise

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self._file.close()

    def read(self) -> bytes:
        """Returns the whole file, verified.

        Raises:
            BlobDamaged: It cannot be read, or does not have the bytes that were stored.
        """
        self.verify(0, self._blob.size_bytes)
        with map_damage(self._blob, self._path):
            return os.pread(self._file.fileno(), self._blob.size_bytes, 0)

    def verify(self, start: int, end: int) -> None:
        """Verifies the segments that the bytes [start, end) lie in.

        Raises:
            BlobDamaged: One cannot be read, or does not have the bytes that were stored.
        """
        for segment in range(start // SEGMENT_BYTES, -(-end // SEGMENT_BYTES)):
            if segment not in self._verified:
                with self._lock:
                    self._verify_once(segment)

    def _verify_once(self, segment: int) -> None:
        if segment in self._verified:
            return
        if self._ahead is None:
            self._verify_segment(segment)
        else:
            self._begin(self._ahead, segment)
            self._begin(self._ahead, segment + 1)
            self._running.pop(segment).result()
        self._verified.add(segment)

    def _begin(self, ahead: Executor, segment: int) -> None:
        begun = segment in self._running or segment in self._verified
        if not begun and segment * SEGMENT_BYTES < self._blob.size_bytes:
            self._running[segment] = ahead.submit(self._verify_segment, segment)

    def _verify_segment(self, segment: int) -> None:
        first = segment * SEGMENT_BLOCKS
        for index in range(first, min(first + SEGMENT_BLOCKS, -(-self._blob.size_bytes // BLOCK_BYTES))):
            with map_damage(self._blob, self._path):
                block = os.pread(self._file.fileno(), BLOCK_BYTES, index * BLOCK_BYTES)
            verify_block(self._blob, self._path, index, block)

    def _verify_digest(self) -> None:
        with map_damage(self._blob, self._path):
            found = hashlib.file_digest(self._file, "sha256").hexdigest()
        if found != self._blob.sha256:
            raise damaged(self._blob, self._path, f"is damaged: its SHA-256 is {found}")
        self._verified.update(range(-(-self._blob.size_bytes // SEGMENT_BYTES)))


def read_verified(path: Path, blob: BlobRef) -> bytes:
    """Returns a stored file.

    Raises:
        BlobDamaged: It is missing, or is not what was stored.
    """
    with Verifier(path, blob) as verifier:
        return verifier.read()
