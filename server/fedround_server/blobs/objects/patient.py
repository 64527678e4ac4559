"""Repeats requests to an object store that does not answer."""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from fedround_server.blobs.objects.bucket import Bucket, BucketError, Entry
from fedround_server.blobs.objects.layout import PART_BYTES
from fedround_server.blobs.objects.watch import Watch
from fedround_server.domain.errors import ObjectsUnavailable

log = logging.getLogger(__name__)
R = TypeVar("R")
PATIENCE_SECONDS = 60.0
"""For how long a request is repeated."""
FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0
"""Seconds between two attempts; each waits twice as long as the one before, within half and one and a half of that."""
SILENT_SECONDS = 3.0
"""After how many seconds without an answer an outage is logged: single errors are common."""


class PatientBucket:
    """A bucket whose requests are repeated for a while; `Bucket` describes the methods.

    Requests raise `ObjectsUnavailable` in the end, those of an outage that has lasted long after one attempt. An outage
    is logged once, also while the store takes requests and does not answer, and so is its end.
    """

    def __init__(
        self,
        bucket: Bucket,
        patience: float = PATIENCE_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Repeats the requests to a bucket for so many seconds."""
        self._bucket = bucket
        self._patience = patience
        self._sleep = sleep
        self._clock = clock
        self._lock = threading.Lock()
        # Since when no request was answered; None if the last one was.
        self._silent_since: float | None = None
        self._is_logged = False
        self._watch = Watch(self._late, SILENT_SECONDS, clock)

    def put(self, key: str, data: bytes, *, create: bool = False, commit: str = "") -> None:
        """Stores an object; one that an attempt without an answer has created is no other one."""
        attempts = 0

        def attempt() -> None:
            nonlocal attempts
            attempts += 1
            try:
                self._bucket.put(key, data, create=create, commit=commit)
            except FileExistsError:
                found = self._bucket.head(key) if attempts > 1 and commit else None
                if found is None or found.commit != commit:
                    raise

        self._repeat(attempt, len(data))

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Returns a part of an object."""
        return self._repeat(lambda: self._bucket.get(key, start, end), PART_BYTES if end is None else end - start)

    def head(self, key: str) -> Entry | None:
        """Returns what is known of an object."""
        return self._repeat(lambda: self._bucket.head(key))

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Yields the objects whose keys begin with a prefix that ends with a slash, in the order of their keys."""
        after = ""
        while page := self._repeat(partial(self._bucket.page, prefix, after)):
            yield from page
            after = page[-1].key

    def delete(self, key: str) -> None:
        """Removes an object."""
        self._repeat(lambda: self._bucket.delete(key))

    def delete_once(self, key: str) -> None:
        """Removes an object with one attempt: another one could remove what was put in between.

        Raises:
            ObjectsUnavailable: It is not known whether the object was, or will be, removed.
        """
        try:
            self._bucket.delete(key)
        except BucketError as error:
            raise _unavailable(error) from None

    def _repeat(self, request: Callable[[], R], size_bytes: int = 0) -> R:
        begun, delay = self._clock(), FIRST_DELAY
        while True:
            try:
                with self._watch.request(size_bytes):
                    result = request()
            except BucketError as error:
                if self._clock() - min(begun, self._failed(error)) >= self._patience:
                    raise _unavailable(error) from None
                self._sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311 -- no secret
                delay = min(2 * delay, LONGEST_DELAY)
            except (FileNotFoundError, FileExistsError):
                self._answered()
                raise
            else:
                self._answered()
                return result

    def _failed(self, error: BucketError) -> float:
        """Returns since when no request was answered."""
        return self._silent(self._clock(), error)

    def _late(self, since: float) -> None:
        self._silent(since, "it does not answer")

    def _silent(self, since: float, problem: BucketError | str) -> float:
        """Notes that a request has no answer, and logs that in time; returns since when no request was answered."""
        with self._lock:
            if self._silent_since is None:
                self._silent_since = since
            since = self._silent_since
            is_news = not self._is_logged and self._clock() - since >= SILENT_SECONDS
            self._is_logged |= is_news
        if is_news:
            log.warning("the object store cannot be used: %s; uploads and aggregations wait for it", problem)
        return since

    def _answered(self) -> None:
        self._watch.answered()
        if self._silent_since is None:
            return
        with self._lock:
            since, self._silent_since = self._silent_since, None
            was_logged, self._is_logged = self._is_logged, False
        if was_logged and since is not None:
            log.warning("the object store answers again, after %.0f s", self._clock() - since)


def _unavailable(error: BucketError) -> ObjectsUnavailable:
    return ObjectsUnavailable(f"the object store cannot be used: {error.problem}: try again later")
