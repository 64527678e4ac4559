"""What all use cases share."""

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, Protocol, TypeVar

from fedround_server.blobs import Blobs
from fedround_server.coordinator.presence import Presence
from fedround_server.domain.quota import Quotas
from fedround_server.engine.executor import Engine
from fedround_server.store import Store
from fedround_server.wakeups import Hub

P = ParamSpec("P")
R = TypeVar("R")


class Clock(Protocol):
    """Time, so that tests can tell it."""

    def now(self) -> datetime:
        """Returns the wall time, aware, in UTC."""

    async def sleep(self, duration: timedelta) -> None:
        """Waits, by a clock that nobody sets."""


class SystemClock:
    """The machine's time."""

    def now(self) -> datetime:
        """Returns the wall time."""
        return datetime.now(UTC)

    async def sleep(self, duration: timedelta) -> None:
        """Waits by the monotonic clock."""
        await asyncio.sleep(max(0.0, duration.total_seconds()))


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of everything.

    Attributes:
        max_model_bytes: Size of a model or update file.
        max_unfinished_bytes_per_user: What the unfinished uploads of one user may have.
        max_unfinished_bytes: What all unfinished uploads may have.
        min_free_bytes: What new models leave free on the disk; updates leave half of it.
        max_stored_bytes: What all files that are kept may have before new models are refused.
        quotas: How much users may have.
        heartbeat: How long a subscription stays silent.
        max_predictions: Predictions that may wait for their turn.
        token_lifetime: Of tokens that nobody gave another one; None for ever.
        max_token_lifetime: Of any token; None for ever.
    """

    max_model_bytes: int = 16 << 30
    max_unfinished_bytes_per_user: int = 64 << 30
    max_unfinished_bytes: int = 1 << 40
    min_free_bytes: int = 1 << 30
    max_stored_bytes: int = 1 << 44
    quotas: Quotas = field(default_factory=Quotas)
    heartbeat: timedelta = timedelta(seconds=20)
    max_predictions: int = 32
    token_lifetime: timedelta | None = None
    max_token_lifetime: timedelta | None = None


@dataclass(frozen=True)
class Context:
    """The parts that use cases join; architectures are the operator's factories by name."""

    store: Store
    blobs: Blobs
    engine: Engine
    hub: Hub
    tasks: asyncio.TaskGroup
    limits: Limits = field(default_factory=Limits)
    architectures: Mapping[str, str] = field(default_factory=dict)
    presence: Presence = field(default_factory=Presence)
    clock: Clock = field(default_factory=SystemClock)
    new_id: Callable[[], str] = lambda: str(uuid.uuid4())


async def run_shielded(work: Coroutine[Any, Any, R]) -> R:
    """Awaits work that must not stop half way: a caller that is cancelled leaves, the work goes on.

    A commit without what follows it (wake subscribers, aggregate the round that it closed) would wait for a restart.
    """
    task = asyncio.create_task(work)
    _under_way.add(task)
    task.add_done_callback(_under_way.discard)
    return await asyncio.shield(task)


async def await_even_if_cancelled(work: Coroutine[Any, Any, R]) -> R:
    """Awaits work that uses what its caller holds.

    A caller that is cancelled, even twice, leaves after the work's end, so that no file is closed or cut under it.
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
    """Runs blocking work in a thread, and waits it out."""
    return await await_even_if_cancelled(asyncio.to_thread(function, *args, **kwargs))


async def settle() -> None:
    """Waits for work that was not to stop half way."""
    if _under_way:
        await asyncio.wait(_under_way)


_under_way: set[asyncio.Task[Any]] = set()
