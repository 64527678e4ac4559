"""Work that goes on although its caller is cancelled."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

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
        return await asyncio.shield(task)

    async def drain(self) -> None:
        """Waits for the end of the shielded work under way."""
        if self._shielded:
            await asyncio.wait(self._shielded)


async def await_even_if_cancelled(work: Coroutine[Any, Any, R]) -> R:
    """Awaits work that uses resources of its caller.

    If the caller is cancelled, even twice, it returns only after the work has ended, so that no file is closed or
    truncated while the work uses it.
    """
    task = asyncio.create_task(work)
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return task.result()
    if not task.cancelled() and (failure := task.exception()) is not None:
        raise cancelled from failure
    raise cancelled


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Runs blocking work in a thread, and waits for its end even if the caller is cancelled."""
    return await await_even_if_cancelled(asyncio.to_thread(function, *args, **kwargs))
