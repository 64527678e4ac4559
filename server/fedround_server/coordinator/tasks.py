"""Work that goes on although its caller is cancelled."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

from fedround_server.domain.errors import FedroundError

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


class Tasks:
    """The shielded work under way."""

    def __init__(self) -> None:
        self._shielded: set[asyncio.Task[Any]] = set()

    async def run_shielded(self, work: Coroutine[Any, Any, R]) -> R:
        """Runs work that must not stop half way: if the caller is cancelled, it returns, and the work goes on.

        A commit without what follows it (waking subscribers, aggregating the round that it closed) would wait for a
        restart.
        """
        task = asyncio.create_task(work)
        self._shielded.add(task)
        task.add_done_callback(self._shielded.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(report_fault)
            raise

    async def run_to_end(self, work: Coroutine[Any, Any, R]) -> R:
        """Runs work that must not stop half way, and that uses resources of its caller.

        If the caller is cancelled, it returns only after the work has ended.
        """
        task = asyncio.create_task(work)
        self._shielded.add(task)
        try:
            return await _end(task)
        finally:
            self._shielded.discard(task)

    async def drain(self) -> None:
        """Waits for the end of the shielded work under way."""
        if self._shielded:
            await asyncio.wait(self._shielded)


def report_fault(task: asyncio.Task[Any]) -> None:
    """Logs the error of work whose caller has left, if it is a fault of the server: an outage is in the log already."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, FedroundError):
        log.error("work whose caller has left has failed", exc_info=error)


async def await_even_if_cancelled(work: Coroutine[Any, Any, R]) -> R:
    """Awaits work that uses resources of its caller.

    If the caller is cancelled, even twice, it returns only after the work has ended, so that no file is closed or
    truncated while the work uses it.
    """
    return await _end(asyncio.create_task(work))


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Runs blocking work in a thread, and waits for its end even if the caller is cancelled."""
    call = partial(copy_context().run, function, *args, **kwargs)
    return await _end(asyncio.get_running_loop().run_in_executor(None, call))


@asynccontextmanager
async def opened_in_thread(make: Callable[[], AbstractContextManager[R]]) -> AsyncIterator[R]:
    """Makes, enters and leaves a context in threads, since each of these may wait for other machines."""
    stack = ExitStack()
    try:
        # Entered in the thread, so that it is left even if the caller is cancelled meanwhile.
        yield await in_thread(lambda: stack.enter_context(make()))
    finally:
        await in_thread(stack.close)


async def _end(work: asyncio.Future[R]) -> R:
    """Waits for the end of work even if the caller is cancelled, and raises its cancellation only then."""
    cancelled = None
    while not work.done():
        # Not the work itself, which would be cancelled with the caller.
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        work.add_done_callback(partial(_wake, ended))
        try:
            await ended
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return work.result()
    if not work.cancelled() and (failure := work.exception()) is not None:
        raise cancelled from failure
    raise cancelled


def _wake(waiting: asyncio.Future[None], _work: asyncio.Future[Any]) -> None:
    if not waiting.done():
        waiting.set_result(None)
