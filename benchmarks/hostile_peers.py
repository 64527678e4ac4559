"""Measures what unauthenticated peers can cost a server: memory, and the time of a known user's calls meanwhile.

A server with its default settings for each attack. The attackers live in a process of their own and speak raw HTTP/2. A
known user calls GetMyself twenty times a second, in turn over an open connection and over a new one.

    MiB more   peak of the server's anonymous memory over what it was before the attack
    median     time of the known user's calls during the attack, in milliseconds; also the longest
    errors     the known user's calls that failed
    MiB left   memory over what it was before, some seconds after the attackers have gone
"""

import argparse
import multiprocessing
import selectors
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from fedround.v1.user_pb2 import GetMyselfRequest
from fedround.v1.user_pb2_grpc import UserServiceStub
from fedround_server.engine.process import allow_many_files
from measure import MIB, Running, anonymous, fedround_server

DATA, HEADERS, RST_STREAM, SETTINGS, PING = 0, 1, 3, 4, 6
END_STREAM, ACK, END_HEADERS = 1, 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MYSELF = "/fedround.v1.UserService/GetMyself"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
SOURCE = "127.0.0.2"
"""The address of the attackers; the known user has another one."""
CALM = 8.0
"""Seconds after an attack in which the server gives memory back: its collector looks every five."""
EMPTY = b"\0\0\0\0\0"
LIST_SERVICES = b"\0\0\0\0\x03\x3a\x01*"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Returns a frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def call(stream: int, method: str, **metadata: str) -> bytes:
    """Returns the frame that begins a call."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "a",
        "te": "trailers",
        "content-type": "application/grpc",
        **{name.replace("_", "-"): value for name, value in metadata.items()},
    }
    return frame(HEADERS, END_HEADERS, stream, b"".join(_literal(*pair) for pair in fields.items()))


def _literal(name: str, value: str) -> bytes:
    return b"\0" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    size, more = len(text), b""
    if size < 127:
        return bytes([size]) + text.encode()
    size -= 127
    while size >= 128:
        more += bytes([size % 128 + 128])
        size //= 128
    return b"\x7f" + more + bytes([size]) + text.encode()


class Attackers:
    """Connections of one process: they send what they are given and read what comes, without looking at it."""

    def __init__(self, address: str, seconds: float) -> None:
        host, _, port = address.rpartition(":")
        self._target = host, int(port)
        self._end = time.monotonic() + seconds
        self._ready = selectors.DefaultSelector()
        self._open: set[socket.socket] = set()

    @property
    def going_on(self) -> bool:
        """Whether the attack has time left."""
        return time.monotonic() < self._end

    def connect(self, first: bytes = PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0)) -> socket.socket | None:
        """Opens a connection, and sends the beginning of one."""
        try:
            one = socket.create_connection(self._target, timeout=2, source_address=(SOURCE, 0))
            one.sendall(first)
        except OSError:
            time.sleep(0.01)
            return None
        one.setblocking(False)
        self._ready.register(one, selectors.EVENT_READ)
        self._open.add(one)
        return one

    def send(self, one: socket.socket, data: bytes) -> bool:
        """Sends all of it, reading meanwhile; returns whether the connection is still there."""
        while data and self.going_on and one in self._open:
            try:
                data = data[one.send(data) :]
            except BlockingIOError:
                self.read(0.01)
            except OSError:
                self.close(one)
        return one in self._open

    def read(self, seconds: float) -> None:
        """Reads what has come."""
        for key, _ in self._ready.select(seconds):
            one = key.fileobj
            assert isinstance(one, socket.socket)
            try:
                if not one.recv(1 << 16):
                    self.close(one)
            except BlockingIOError:
                pass
            except OSError:
                self.close(one)

    def close(self, one: socket.socket) -> None:
        """Closes a connection."""
        self._ready.unregister(one)
        self._open.discard(one)
        one.close()

    def close_all(self) -> None:
        """Closes all of them."""
        for one in tuple(self._open):
            self.close(one)

    def stay(self) -> None:
        """Does nothing more until the end."""
        while self.going_on:
            self.read(0.1)


def many_streams(connections: int, streams: int, method: str, body: bytes = b"", **metadata: str) -> "Attack":
    """Each connection begins so many calls, most of them without a message, and keeps them."""

    def attack(peers: Attackers) -> None:
        tail = [frame(DATA, 0, 1 + 2 * number, body) if body else b"" for number in range(streams)]
        calls = [call(1 + 2 * number, method, **metadata) + tail[number] for number in range(streams)]
        for _ in range(connections):
            one = peers.connect()
            for start in range(0, streams, 50):
                if one is None or not peers.send(one, b"".join(calls[start : start + 50])):
                    break
            peers.read(0)
        peers.stay()

    return attack


def resets(method: str) -> "Attack":
    """One connection after the other begins calls and cancels each at once."""

    def attack(peers: Attackers) -> None:
        cancel = struct.pack(">I", 8)
        while peers.going_on:
            one, stream = peers.connect(), 1
            while one is not None and peers.going_on:
                some = [
                    call(number, method) + frame(RST_STREAM, 0, number, cancel)
                    for number in range(stream, stream + 100, 2)
                ]
                stream += 100
                if not peers.send(one, b"".join(some)):
                    break
                peers.read(0)

    return attack


def waves(size: int, streams: int, first: bytes | None = None) -> "Attack":
    """Opens so many connections, each with some calls, closes them all, and begins again."""

    def attack(peers: Attackers) -> None:
        calls = b"".join(call(1 + 2 * number, MYSELF) for number in range(streams))
        while peers.going_on:
            for _ in range(size):
                one = peers.connect() if first is None else peers.connect(first)
                if one is not None and calls:
                    peers.send(one, calls)
                if not peers.going_on:
                    break
            peers.read(1)
            peers.close_all()

    return attack


def endless(method: str, message: bytes) -> "Attack":
    """One stream after the other sends messages without an end."""

    def attack(peers: Attackers) -> None:
        while peers.going_on:
            one = peers.connect()
            if one is None or not peers.send(one, call(1, method)):
                continue
            # The answers are not read slower than they come: the window is the largest there is.
            large = struct.pack(">I", (1 << 31) - 1 - (1 << 16))
            peers.send(one, frame(SETTINGS, 0, 0, struct.pack(">HI", 4, (1 << 31) - 1)) + frame(8, 0, 0, large))
            while peers.send(one, frame(DATA, 0, 1, message) * 20) and peers.going_on:
                peers.read(0)

    return attack


def floods(part: bytes) -> "Attack":
    """One connection after the other sends frames that the server has to answer."""

    def attack(peers: Attackers) -> None:
        while peers.going_on:
            one = peers.connect()
            while one is not None and peers.send(one, part * 200) and peers.going_on:
                peers.read(0)

    return attack


Attack = Callable[[Attackers], None]
ATTACKS: dict[str, Attack] = {
    "20,000 calls without a message, one connection": many_streams(1, 20_000, MYSELF),
    "100,000 calls without a message, one connection": many_streams(1, 100_000, MYSELF),
    "100 connections with 1,000 such calls each": many_streams(100, 1_000, MYSELF),
    "the same with 7 KiB of metadata each": many_streams(20, 1_000, MYSELF, x_more="m" * (7 << 10)),
    "the same with unknown tokens": many_streams(100, 1_000, MYSELF, x_token="fr_" + "A" * 43),
    "50,000 calls of methods that do not exist": many_streams(1, 50_000, "/a/B", EMPTY),
    "50,000 health checks without a message": many_streams(1, 50_000, CHECK),
    "2,000 health watches, one connection": many_streams(1, 2_000, WATCH, EMPTY),
    "2,000 health watches, a connection each": many_streams(2_000, 1, WATCH, EMPTY),
    "calls that are reset at once": resets(MYSELF),
    "health checks that are reset at once": resets(CHECK),
    "waves of 1,000 connections": waves(1_000, 0),
    "waves of 1,000 connections with 100 calls each": waves(1_000, 100),
    "waves of 1,000 connections that send nothing": waves(1_000, 0, b""),
    "endless reflection": endless(REFLECTION, LIST_SERVICES),
    "endless SETTINGS": floods(frame(SETTINGS, 0, 0)),
    "endless PING": floods(frame(PING, 0, 0, bytes(8))),
}


@dataclass
class KnownUser:
    """Calls all the time, and measures how long that takes."""

    running: Running
    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Calls for the time of the block."""
        over = threading.Event()
        thread = threading.Thread(target=self._call, args=(over,))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _call(self, over: threading.Event) -> None:
        metadata = (("x-token", self.running.token),)
        options = (("grpc.use_local_subchannel_pool", 1),)
        with grpc.insecure_channel(self.running.address, options) as same:
            while not over.wait(0.05):
                with grpc.insecure_channel(self.running.address, options) as fresh:
                    for channel in (same, fresh):
                        started = time.monotonic()
                        try:
                            UserServiceStub(channel).GetMyself(GetMyselfRequest(), metadata=metadata, timeout=30)
                        except grpc.RpcError as error:
                            self.errors.append(f"{error.code().name}: {error.details()}")
                        self.seconds.append(time.monotonic() - started)


@contextmanager
def peak(pid: int) -> Iterator[list[int]]:
    """Yields a list that has the peak of a process's memory as its last entry."""
    over, found = threading.Event(), [0]

    def look() -> None:
        while not over.wait(0.02):
            found.append(max(found[-1], anonymous([pid])))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def measure(folder: Path, name: str, seconds: float, arguments: list[str]) -> tuple[str, ...]:
    """Measures one attack; returns a row of the table."""
    with fedround_server(folder / "data", *arguments) as running:
        known = KnownUser(running)
        with known.calling():
            time.sleep(1)
        known.seconds.clear()
        time.sleep(1)
        before = anonymous([running.pid])
        with peak(running.pid) as found, known.calling():
            context = multiprocessing.get_context("spawn")
            process = context.Process(target=_attack, args=(running.address, name, seconds))
            process.start()
            process.join()
        time.sleep(CALM)
        left = anonymous([running.pid])
    times = sorted(1000 * one for one in known.seconds)
    if known.errors:
        sys.stderr.write(f"{name}: {known.errors[0]}\n")
    return (
        name,
        f"{(found[-1] - before) / MIB:.0f}",
        f"{statistics.median(times):.0f}",
        f"{times[-1]:.0f}",
        f"{len(known.errors)} of {len(times)}",
        f"{(left - before) / MIB:.0f}",
    )


def _attack(address: str, name: str, seconds: float) -> None:
    allow_many_files()
    peers = Attackers(address, seconds)
    with suppress(KeyboardInterrupt):
        ATTACKS[name](peers)
    peers.close_all()


def main() -> None:
    """Prints the table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="that each attack lasts")
    parser.add_argument("--only", default="", help="run the attacks whose name contains this")
    parser.add_argument("arguments", nargs="*", help="of the server, after --")
    options = parser.parse_args()
    allow_many_files()
    print("| attack | MiB more | median, ms | longest, ms | errors | MiB left |\n|---|---|---|---|---|---|", flush=True)
    for name in ATTACKS:
        if options.only in name:
            with tempfile.TemporaryDirectory() as folder:
                row = measure(Path(folder), name, options.seconds, options.arguments)
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
