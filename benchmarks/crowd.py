"""Many subscribers in a few processes of their own, on raw stubs, for benchmarks."""

import asyncio
import multiprocessing
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import grpc

from fedround.v1.event_pb2 import Event
from fedround.v1.round_pb2 import SubscribeRequest

SUBSCRIBE = "/fedround.v1.RoundService/Subscribe"
MAX_BACKOFF = 8.0


@dataclass
class Heard:
    """What subscribers have heard.

    Attributes:
        times: By sequence, the wall times at which each heard of an event.
        kinds: By sequence, what kind of event it was.
        errors: What went wrong, by status and text; each was followed by another try.
        disorder: How many events came twice, or behind a later one.
        subscribed: How many are subscribed now.
        complete: Since when all are, as wall time; None if not all are.
    """

    times: "dict[int, array[float]]" = field(default_factory=dict)
    kinds: dict[int, str] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    disorder: int = 0
    subscribed: int = 0
    complete: float | None = None

    def add(self, other: "Heard") -> None:
        """Adds what others heard, or the same later."""
        for sequence, found in other.times.items():
            self.times.setdefault(sequence, array("d")).extend(found)
        self.kinds |= other.kinds
        self.errors += other.errors
        self.disorder += other.disorder


class Crowd:
    """Many subscribers in one process, each with a token of its own."""

    def __init__(self, address: str, training_id: str) -> None:
        self._address = address
        self._training_id = training_id
        self._heard = Heard()
        self._up: set[str] = set()
        self._wanted = 0
        self._complete: float | None = None
        self._last = (b"", Event())

    async def obey(self, parent: Connection) -> None:
        """Does what the parent says."""
        said: asyncio.Queue[Any] = asyncio.Queue()
        asyncio.get_running_loop().add_reader(parent.fileno(), lambda: said.put_nowait(parent.recv()))
        tasks: list[asyncio.Task[None]] = []
        channels: list[grpc.aio.Channel] = []
        parent.send("ready")
        while True:
            match await said.get():
                case "subscribe", tokens, connections, after:
                    self._wanted = len(tokens)
                    options = (("grpc.use_local_subchannel_pool", 1),)
                    channels = [grpc.aio.insecure_channel(self._address, options) for _ in range(connections)]
                    tasks = [
                        asyncio.create_task(self._subscriber(channels[index % connections], token, after))
                        for index, token in enumerate(tokens)
                    ]
                case "report":
                    self._heard.subscribed, self._heard.complete = len(self._up), self._complete
                    parent.send(self._heard)
                    self._heard = Heard()
                case "leave":
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
                    await asyncio.gather(*(channel.close() for channel in channels))
                    parent.send("left")

    async def _subscriber(self, channel: grpc.aio.Channel, token: str, after: int | None) -> None:
        # Messages stay bytes: equal ones are decoded once.
        call = channel.unary_stream(SUBSCRIBE, request_serializer=SubscribeRequest.SerializeToString)
        backoff = 0.25
        while True:
            request = SubscribeRequest(training_id=self._training_id)
            if after is not None:
                request.resume_after_sequence[self._training_id] = after
            stream = call(request, metadata=(("authorization", f"Bearer {token}"),))
            try:
                await stream.initial_metadata()
                self._up.add(token)
                if len(self._up) == self._wanted:
                    self._complete = time.time()
                while (message := await stream.read()) is not grpc.aio.EOF:
                    backoff = 0.25
                    after = self._hear(message, after)
                self._heard.errors["it ended"] += 1
            except grpc.aio.AioRpcError as error:
                self._heard.errors[f"{error.code().name}: {error.details()}"] += 1
            finally:
                self._up.discard(token)
                self._complete = None
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, MAX_BACKOFF)

    def _hear(self, message: bytes, after: int | None) -> int | None:
        now = time.time()
        if self._last[0] != message:
            self._last = (message, Event.FromString(message))
        event = self._last[1]
        kind = event.WhichOneof("payload")
        if kind in ("heartbeat", "going_away"):
            return after
        if after is not None and event.sequence <= after:
            self._heard.disorder += 1
        self._heard.times.setdefault(event.sequence, array("d")).append(now)
        self._heard.kinds[event.sequence] = kind or ""
        return event.sequence


class Crowds:
    """All subscribers, in so many processes that are ready when this is made."""

    def __init__(self, processes: int, address: str, training_id: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes, self._pipes = [], []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_live, args=(theirs, address, training_id), daemon=True)
            process.start()
            self._processes.append(process)
            self._pipes.append(ours)
        self._answers()

    def subscribe(self, tokens: Sequence[str], connections: int, after: int | None) -> None:
        """Has all subscribe at once.

        Args:
            tokens: One a subscriber.
            connections: Over how many in all.
            after: The sequence to resume behind; None for the current round.
        """
        count = len(self._pipes)
        for index, pipe in enumerate(self._pipes):
            pipe.send(("subscribe", tokens[index::count], -(-connections // count), after))

    def report(self) -> Heard:
        """Returns what all have heard since the last report."""
        for pipe in self._pipes:
            pipe.send("report")
        answers: list[Heard] = self._answers()
        whole = Heard()
        for heard in answers:
            whole.add(heard)
        times = [heard.complete for heard in answers if heard.complete is not None]
        whole.subscribed = sum(heard.subscribed for heard in answers)
        whole.complete = max(times) if len(times) == len(answers) else None
        return whole

    def leave(self) -> None:
        """Has all cancel and hang up, and ends the processes."""
        for pipe in self._pipes:
            pipe.send("leave")
        self._answers()
        self.kill()

    def kill(self) -> None:
        """Cuts all connections at once."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def _answers(self) -> list[Any]:
        return [pipe.recv() for pipe in self._pipes]


def _live(parent: Connection, address: str, training_id: str) -> None:
    asyncio.run(Crowd(address, training_id).obey(parent))
