"""A TCP proxy that does to connections what bad networks do."""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from wire import RESET

READ = 1 << 16


@dataclass(frozen=True)
class Fate:
    """What happens to one connection.

    Attributes:
        latency: Seconds that all it carries is late.
        piece: How many bytes are sent at a time.
        pause: Seconds behind each piece.
        lives: How many bytes it carries in both directions until something happens; None for any number.
        end: What happens then: "reset"; "half", the client's side is closed; "hole", both are; or "flip" of one bit,
            and then it goes on.
    """

    latency: float = 0
    piece: int = READ
    pause: float = 0
    lives: int | None = None
    end: str = "reset"


class Proxy:
    """Leads to a server, over any number of connections. Its `with` block is the time in which it does."""

    def __init__(self, address: str, fate: Callable[[int], Fate]) -> None:
        """Begins with no connection.

        Args:
            address: The server's, or the path of its socket.
            fate: Returns the fate of the n-th connection.
        """
        self._address = address
        self._fate = fate
        self._connections: list[_Connection] = []
        self._door = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._door.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            # Wakes the thread that accepts.
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self.cut()

    def cut(self) -> None:
        """Resets all connections that there are."""
        for connection in self._connections:
            connection.reset()

    def swallow(self) -> None:
        """Lets nothing more through on the connections that there are, and tells neither end."""
        for connection in self._connections:
            connection.swallow()

    @property
    def connections(self) -> int:
        return len(self._connections)

    @property
    def struck(self) -> int:
        """How many connections something happened to."""
        return sum(connection.struck for connection in self._connections)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._door.accept()
            except OSError:
                return
            try:
                far = _connected(self._address)
            except OSError:
                near.close()
                continue
            self._connections.append(_Connection(near, far, self._fate(len(self._connections))))


class _Connection:
    """A connection from the client's end, near, to the server's, far."""

    def __init__(self, near: socket.socket, far: socket.socket, fate: Fate) -> None:
        self._near, self._far, self._fate = near, far, fate
        self._left = fate.lives
        self._deaf: tuple[socket.socket, ...] = ()
        self._lock = threading.Lock()
        self.struck = False
        for end in (near, far):
            if end.family != socket.AF_UNIX:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Either may close both ends at once: nothing touches them here behind this.
        for source, target in ((near, far), (far, near)):
            threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def reset(self) -> None:
        for end in (self._near, self._far):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                # Wakes the thread that reads it, which would keep it open otherwise.
                end.shutdown(socket.SHUT_RD)
            end.close()

    def swallow(self) -> None:
        with self._lock:
            self._deaf = (self._near, self._far)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(READ):
                _sleep(self._fate.latency)
                with self._lock:
                    data = self._spend(data, source)
                for start in range(0, len(data), self._fate.piece):
                    target.sendall(data[start : start + self._fate.piece])
                    _sleep(self._fate.pause)
        self.reset()

    def _spend(self, data: bytes, source: socket.socket) -> bytes:
        """Takes from the connection's remaining bytes; returns what gets through."""
        if source in self._deaf:
            return b""
        if self._left is None or len(data) <= self._left:
            self._left = None if self._left is None else self._left - len(data)
            return data
        at, self._left, self.struck = self._left, None, True
        match self._fate.end:
            case "flip":
                return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
            case "hole":
                self._deaf = (self._near, self._far)
            case "half":
                self._deaf = (self._near,)
                self._far.shutdown(socket.SHUT_WR)
            case _:
                self.reset()
        return data[:at] if source is self._far else b""


def _connected(address: str) -> socket.socket:
    if not address.startswith("/"):
        host, port = address.split(":")
        return socket.create_connection((host, int(port)))
    made = socket.socket(socket.AF_UNIX)
    try:
        made.connect(address)
    except OSError:
        made.close()
        raise
    return made


def _sleep(seconds: float) -> None:
    # Sleeping for no time at all takes a tenth of a millisecond.
    if seconds:
        time.sleep(seconds)


def mixture(seed: int, struck: int) -> Callable[[int], Fate]:
    """Draws a fate for each of the first connections; the others are only slow."""

    def fate(number: int) -> Fate:
        rand = random.Random(f"{seed} {number}")
        lives = rand.choice((rand.randint(0, 3000), rand.randint(0, 60_000))) if number < struck else None
        end = rand.choice(("reset", "half", "hole", "flip"))
        return Fate(rand.choice((0, 0.005)), rand.choice((READ, 1000, 7)), rand.choice((0, 0.0001)), lives, end)

    return fate
