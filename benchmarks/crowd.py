"""Many subscribers in a few processes of their own, for benchmarks."""

import asyncio
import multiprocessing
import random
import struct
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from typing import Any

from fedround.v1.event_pb2 import Event
from fedround.v1.round_pb2 import SubscribeRequest

MIN_BACKOFF, MAX_BACKOFF = 0.5, 30.0
"""As the SDK does, each waits a random part of the back-off: up to the first, then twice as long, up to the second."""
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4
WINDOW = 1 << 30
HEAD = 9
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS_OF_ALL = {
    b":method": b"POST",
    b":scheme": b"http",
    b":path": b"/fedround.v1.RoundService/Subscribe",
    b":authority": b"localhost",
    b"te": b"trailers",
    b"content-type": b"application/grpc",
}


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
        cpu: Seconds of CPU that the processes of the subscribers have used since they started.
    """

    times: "dict[int, array[float]]" = field(default_factory=dict)
    kinds: dict[int, str] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    disorder: int = 0
    subscribed: int = 0
    complete: float | None = None
    cpu: float = 0.0

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
        self.heard = Heard()
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self.training_id = training_id
        self._up: set[Subscriber] = set()
        self._wanted = 0
        self._complete: float | None = None
        self._last = (b"", Event())
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[Connection] = set()

    async def obey(self, parent: Pipe) -> None:
        """Does what the parent says."""
        said: asyncio.Queue[Any] = asyncio.Queue()
        asyncio.get_running_loop().add_reader(parent.fileno(), lambda: said.put_nowait(parent.recv()))
        parent.send("ready")
        while True:
            match await said.get():
                case "subscribe", tokens, connections, after:
                    self._wanted = len(tokens)
                    for start in range(connections):
                        self.connect([Subscriber(token, after) for token in tokens[start::connections]], 0)
                case "report":
                    self.heard.subscribed, self.heard.complete = len(self._up), self._complete
                    self.heard.cpu = time.process_time()
                    parent.send(self.heard)
                    self.heard = Heard()
                case "leave":
                    for connection in self._connections:
                        connection.hang_up()
                    parent.send("left")

    def connect(self, subscribers: "list[Subscriber]", backoff: float) -> None:
        """Has subscribers share a new connection, after some seconds."""
        task = asyncio.create_task(self._connect(subscribers, backoff))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, subscribers: "list[Subscriber]", backoff: float) -> None:
        await asyncio.sleep(random.uniform(0, backoff))
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self, subscribers), self._host, self._port
            )
        except OSError as error:
            self.heard.errors[str(error)] += len(subscribers)
            self.connect(subscribers, min(2 * backoff or MIN_BACKOFF, MAX_BACKOFF))
        else:
            self._connections.add(connection)

    def enter(self, subscriber: "Subscriber") -> None:
        """Notes that somebody is subscribed."""
        self._up.add(subscriber)
        if len(self._up) == self._wanted:
            self._complete = time.time()

    def leave(self, subscriber: "Subscriber", why: str) -> None:
        """Notes that somebody is not subscribed any more."""
        self._up.discard(subscriber)
        self._complete = None
        self.heard.errors[why] += 1

    def hear(self, subscriber: "Subscriber", message: bytes) -> None:
        """Notes what somebody hears; equal messages are decoded once."""
        now = time.time()
        if self._last[0] != message:
            self._last = (message, Event.FromString(message))
        event = self._last[1]
        kind = event.WhichOneof("payload") or ""
        if kind in ("heartbeat", "going_away"):
            return
        if subscriber.after is not None and event.sequence <= subscriber.after:
            self.heard.disorder += 1
        subscriber.after = event.sequence
        subscriber.done = kind == "training_removed"
        self.heard.times.setdefault(event.sequence, array("d")).append(now)
        self.heard.kinds[event.sequence] = kind


@dataclass(eq=False)
class Subscriber:
    """A subscription.

    Attributes:
        after: The last sequence that it heard.
        done: Whether nothing more can come.
        backoff: Seconds to wait at most after the next failure.
        rest: The beginning of a message.
    """

    token: str
    after: int | None
    done: bool = False
    backoff: float = MIN_BACKOFF
    rest: bytes = b""


class Connection(asyncio.Protocol):
    """Just as much of HTTP/2 as subscriptions take: the clients should leave the machine to the server.

    A client of gRPC takes a tenth of a millisecond of CPU and more for each event.
    """

    def __init__(self, crowd: Crowd, subscribers: list[Subscriber]) -> None:
        self._crowd = crowd
        self._waiting = subscribers
        self._streams: dict[int, Subscriber] = {}
        self._next = 1
        self._rest = b""
        self._over = False

    def connection_made(self, transport: Any) -> None:
        """Subscribes all who waited for it."""
        self._transport = transport
        settings = struct.pack(">HI", INITIAL_WINDOW_SIZE, WINDOW)
        hello = PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW))
        transport.write(hello + b"".join(map(self._request, self._waiting)))

    def connection_lost(self, error: Exception | None) -> None:
        """Has those who still listen connect again."""
        if self._over:
            return
        left = [one for one in self._streams.values() if not one.done]
        for one in left:
            self._crowd.leave(one, f"the connection was lost: {error}")
            one.rest = b""
        if left:
            self._crowd.connect(left, max(one.backoff for one in left))

    def hang_up(self) -> None:
        """Ends it for good."""
        self._over = True
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Takes the frames that are whole."""
        data, at = self._rest + data, 0
        while len(data) - at >= HEAD and len(data) - at >= (end := HEAD + int.from_bytes(data[at : at + 3], "big")):
            kind, flags, stream = struct.unpack_from(">BBI", data, at + 3)
            self._take(kind, flags, stream, data[at + HEAD : at + end])
            at += end
        self._rest = data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in (SETTINGS, PING) and not flags & ACK:
            self._transport.write(frame(kind, ACK, 0, payload if kind == PING else b""))
        if (one := self._streams.get(stream)) is None:
            return
        if kind == DATA:
            self._read(one, payload)
        elif kind == HEADERS and not flags & END_STREAM:
            self._crowd.enter(one)
        if kind == RST_STREAM or (kind in (HEADERS, DATA) and flags & END_STREAM):
            del self._streams[stream]
            if one.done:
                return
            self._crowd.leave(one, "".join(map(chr, filter(lambda byte: 32 <= byte < 127, payload)))[:60])
            one.rest = b""
            asyncio.get_running_loop().call_later(random.uniform(0, one.backoff), self._again, one)
            one.backoff = min(2 * one.backoff, MAX_BACKOFF)

    def _read(self, one: Subscriber, payload: bytes) -> None:
        data = one.rest + payload
        while len(data) >= 5 and len(data) >= (end := 5 + int.from_bytes(data[1:5], "big")):
            self._crowd.hear(one, data[5:end])
            one.backoff = MIN_BACKOFF
            data = data[end:]
        one.rest = data

    def _again(self, one: Subscriber) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._request(one))
        elif not self._over:
            self._crowd.connect([one], one.backoff)

    def _request(self, one: Subscriber) -> bytes:
        stream, self._next = self._next, self._next + 2
        self._streams[stream] = one
        training_id = self._crowd.training_id
        request = SubscribeRequest(training_id=training_id)
        if one.after is not None:
            request.resume_after_sequence[training_id] = one.after
        message = request.SerializeToString()
        headers = {**HEADERS_OF_ALL, b"authorization": b"Bearer " + one.token.encode()}
        # Names and values as they are, without the tables of HPACK; each is shorter than 127 bytes.
        block = b"".join(bytes([0, len(name)]) + name + bytes([len(value)]) + value for name, value in headers.items())
        body = b"\0" + struct.pack(">I", len(message)) + message
        return frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, body)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Returns a frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


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
        whole.cpu = sum(heard.cpu for heard in answers)
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


def _live(parent: Pipe, address: str, training_id: str) -> None:
    asyncio.run(Crowd(address, training_id).obey(parent))
