"""The subscriptions of many clients: in one thread, over a few connections."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Mapping
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import grpc

from fedround.v1.event_pb2 import Event
from fedround.v1.round_pb2 import SubscribeRequest
from fedround.v1.round_pb2_grpc import RoundServiceStub
from fedround_client.channel import OPTIONS
from fedround_client.simulation.functions import SimulationFailed

STREAMS_PER_CONNECTION = 500
"""Fewer than the server allows, so that none waits."""
CONCURRENT_OPENINGS = 64
"""How many subscriptions are opened at the same time."""

_OPTIONS = (*OPTIONS, ("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))


class Subscriptions:
    """The events of one training for many clients, each with its own token; open during the `with` block.

    A stream that ends before the training does is an error: the server is a process on this machine.
    """

    def __init__(self, address: str, training_id: str, tokens: Mapping[int, str], sessions: Mapping[int, str]) -> None:
        """Prepares the subscriptions.

        Args:
            address: HOST:PORT of the server.
            training_id: UUID of the training.
            tokens: The token of each client, by its index.
            sessions: The session id of each client, by its index.
        """
        self._address = address
        self._training_id = training_id
        self._tokens = tokens
        self._sessions = sessions
        self._items: SimpleQueue[tuple[int, Event] | Exception] = SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="subscriptions", daemon=True)
        self._task: asyncio.Task[None] | None = None
        # Each counter is written by one thread only.
        self._received: Counter[int] = Counter()
        self._taken: Counter[int] = Counter()

    def __enter__(self) -> Self:
        """Opens the subscriptions."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends those that are still open."""
        self._loop.call_soon_threadsafe(self._cancel)
        self._thread.join()
        self._loop.close()

    def next(self) -> tuple[int, Event]:
        """Waits for an event; returns it with the index of its client.

        Raises:
            SimulationFailed: A subscription has failed.
        """
        item = self._items.get()
        if isinstance(item, Exception):
            raise item
        self._taken[item[0]] += 1
        return item

    def is_latest(self, index: int) -> bool:
        """Returns whether the last event of a client that `next` returned is the last one that arrived."""
        return self._received[index] == self._taken[index]

    def _run(self) -> None:
        self._task = self._loop.create_task(self._follow_all())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except Exception as error:
            self._items.put(error)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _follow_all(self) -> None:
        opening = asyncio.Semaphore(CONCURRENT_OPENINGS)
        indices = list(self._tokens)
        parts = [
            indices[start : start + STREAMS_PER_CONNECTION] for start in range(0, len(indices), STREAMS_PER_CONNECTION)
        ]
        channels = [grpc.aio.insecure_channel(self._address, options=_OPTIONS) for _ in parts]
        try:
            async with asyncio.TaskGroup() as group:
                for channel, part in zip(channels, parts, strict=True):
                    stub = RoundServiceStub(channel)
                    for index in part:
                        group.create_task(self._follow(stub, index, opening))
        except* grpc.aio.AioRpcError as errors:
            first = next(error for error in errors.exceptions)
            raise SimulationFailed(f"The subscription of a client has ended: {first}") from None
        finally:
            for channel in channels:
                await channel.close()

    async def _follow(self, stub: RoundServiceStub, index: int, opening: asyncio.Semaphore) -> None:
        request = SubscribeRequest(training_id=self._training_id, session_id=self._sessions[index])
        async with opening:
            stream = stub.Subscribe(request, metadata=(("authorization", f"Bearer {self._tokens[index]}"),))
            await stream.initial_metadata()
        async for event in stream:
            if event.WhichOneof("payload") != "heartbeat":
                self._received[index] += 1
                self._items.put((index, event))
