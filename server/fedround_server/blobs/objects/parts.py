"""Puts a local file into a bucket while it grows."""

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path

from fedround_server.blobs.objects.layout import Part, size_of
from fedround_server.blobs.objects.patient import PatientBucket
from fedround_server.failpoints import reached

MAX_PENDING = 2
"""How many parts of a file are put at the same time."""


class PartUploader:
    """Puts the parts of a file, each when it is complete. One thread at a time may call it.

    Attributes:
        parts: What was put, from the beginning of the file on.
    """

    def __init__(
        self,
        bucket: PatientBucket,
        pool: Executor,
        path: Path,
        group: str,
        part_bytes: int,
        kept: Sequence[Part] = (),
        record: Callable[[Sequence[Part]], None] = lambda _: None,
    ) -> None:
        """Puts nothing yet.

        Args:
            bucket: Where to put the parts.
            pool: Its threads put them.
            path: The file.
            group: What their keys begin with.
            part_bytes: Size of a part; the last one is smaller.
            kept: The parts of the first bytes, put by earlier attempts.
            record: Called with `parts` in a thread of the pool when there are more.
        """
        self.parts = list(kept)
        self._kept = len(self.parts)
        self._bucket = bucket
        self._pool = pool
        self._path = path
        self._group = group
        self._part_bytes = part_bytes
        self._record = record
        self._position = size_of(kept)
        self._number = 0
        self._pending: deque[Future[None]] = deque()
        # Those that were put, but for one before them.
        self._early: dict[int, Part] = {}
        self._lock = threading.Lock()

    def advance(self, size: int) -> None:
        """Begins to put the parts that are complete in a file of a size, in bytes; waits while there are several.

        Raises:
            ObjectsUnavailable: An earlier one cannot be put.
        """
        while self._pending and self._pending[0].done():
            self._end()
        while size - self._position >= self._part_bytes:
            self._begin(self._part_bytes)

    def finish(self, size: int) -> None:
        """Puts the rest of a file of a size, in bytes, and waits until all parts are durable.

        Raises:
            ObjectsUnavailable: One cannot be put.
        """
        self.advance(size)
        if size > self._position:
            self._begin(size - self._position)
        while self._pending:
            self._end()

    def abandon(self) -> None:
        """Waits for the parts that are being put, and begins no others."""
        for future in self._pending:
            future.cancel()
        for future in self._pending:
            if not future.cancelled():
                future.exception()
        self._pending.clear()

    def _begin(self, size: int) -> None:
        if len(self._pending) == MAX_PENDING:
            self._end()
        self._pending.append(self._pool.submit(self._put, self._number, self._position, size))
        self._number += 1
        self._position += size

    def _end(self) -> None:
        self._pending.popleft().result()

    def _put(self, number: int, position: int, size: int) -> None:
        part = Part(f"{self._group}{number}", size)
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            self._bucket.put(part.key, os.pread(descriptor, size, position))
        finally:
            os.close(descriptor)
        reached("object.part_put")
        with self._lock:
            self._early[number] = part
            before = len(self.parts)
            while (next_part := self._early.pop(len(self.parts) - self._kept, None)) is not None:
                self.parts.append(next_part)
            if len(self.parts) > before:
                # One after the other, so that no record is older than the one before.
                self._record(self.parts)
