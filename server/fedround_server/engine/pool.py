"""Computes blocks in several threads, and returns what they make in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class Pool:
    """Threads that compute blocks; torch uses one thread in each of them."""

    def __init__(self, threads: int) -> None:
        """Starts nothing if one thread is enough: then the caller computes."""
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads, "compute", torch.set_num_threads, (1,)) if threads > 1 else None

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yields the results in the order of the items, of which only as many are taken as are computed soon."""
        if self._executor is None:
            yield from map(function, items)
            return
        running: deque[Future[R]] = deque()
        for item in items:
            running.append(self._executor.submit(function, item))
            # One more than there are threads, for the one that is the first to end.
            if len(running) > self._threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

    def end(self) -> None:
        """Ends the threads; what they have not begun is not needed any more."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


@contextmanager
def computing(threads: int) -> Iterator[Pool]:
    """Yields threads for the time of the block.

    Meanwhile, torch itself uses one thread: with more, matrix products would have other bits.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = Pool(threads)
    try:
        yield pool
    finally:
        pool.end()
        torch.set_num_threads(before)
