"""The subscriptions of many clients: in one thread, over a few connections."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from fedround.v1.event_pb2 import Event
from fedround.v1.round_pb2 import SubscribeRequest
from fedround.v1.round_pb2_grpc import RoundServiceStub
from fedround_client.channel import OPTIONS
from fedround_client.simulation.functions import SimulationFailed

if TYPE_CHECKING:
    from fedround.v1.round_pb2_grpc import RoundServiceAsyncStub

STREAMS_PER_CONNECTION = 500
"""Fewer than the server allows, so that none waits."""
CONCURRENT_OPENINGS = 64
"""How many subscriptions are opened at the same time."""

# Without a pool of its own, all channels to an address would share one connection.
_OPTIONS = (*OPTIONS, ("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))


@dataclass(frozen=True)
class Subscriber:
    """A client that subscribes.

    Attributes:
        index: Its index.
        token: Its token.
        session_id: UUID of its program.
    """

    index: int
    token: str
    session_id: str


@contextmanager
def subscribed(
    address: str,
    training_id: str,
    subscribers: Mapping[int, Subscriber],
    deliver: Callable[[int, Event], None],
    fail: Callable[[Exception], None],
) -> Iterator[None]:
    """Subscribes clients to a training during the block, each with its own token.

    A stream that ends before the training does is an error: the server is a process on this machine.

    Args:
        address: HOST:PORT of the server.
        training_id: UUID of the training.
        subscribers: The clients, by their indices.
        deliver: Called with each event and the index of its client, in a thread; must not block.
        fail: Called once if a subscription fails, in a thread.
    """
    loop = asyncio.new_event_loop()
    task = loop.create_task(_follow_all(address, training_id, list(subscribers.values()), deliver))

    def run() -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass
        except Exception as error:
            fail(error)

    thread = threading.Thread(target=run, name="subscriptions", daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


async def _follow_all(
    address: str, training_id: str, subscribers: list[Subscriber], deliver: Callable[[int, Event], None]
) -> None:
    opening = asyncio.Semaphore(CONCURRENT_OPENINGS)
    parts = [
        subscribers[start : start + STREAMS_PER_CONNECTION]
        for start in range(0, len(subscribers), STREAMS_PER_CONNECTION)
    ]
    channels = [grpc.aio.insecure_channel(address, options=_OPTIONS) for _ in parts]
    try:
        async with asyncio.TaskGroup() as group:
            for channel, part in zip(channels, parts, strict=True):
                stub = RoundServiceStub(channel)
                for subscriber in part:
                    group.create_task(_follow(stub, training_id, subscriber, opening, deliver))
    except* grpc.aio.AioRpcError as errors:
        raise SimulationFailed(f"The subscription of a client has ended: {errors.exceptions[0]}") from None
    finally:
        for channel in channels:
            await channel.close()


async def _follow(
    stub: RoundServiceAsyncStub,
    training_id: str,
    subscriber: Subscriber,
    opening: asyncio.Semaphore,
    deliver: Callable[[int, Event], None],
) -> None:
    request = SubscribeRequest(training_id=training_id, session_id=subscriber.session_id)
    async with opening:
        stream = stub.Subscribe(request, metadata=(("authorization", f"Bearer {subscriber.token}"),))
        await stream.initial_metadata()
    async for event in stream:
        if event.WhichOneof("payload") != "heartbeat":
            deliver(subscriber.index, event)
