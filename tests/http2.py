"""A client of HTTP/2 that does what no good client does: it does not answer, does not stop, or asks too often."""

import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK, END_STREAM, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4
ENHANCE_YOUR_CALM = 11
MAX_FRAME = 1 << 14
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes


class Peer:
    """One connection. It answers pings for as long as `answers` says, and keeps to the windows that it is given."""

    def __init__(self, address: str, *, answers: int = 1 << 30) -> None:
        host, _, port = address.rpartition(":")
        self.answers = answers
        self._socket = socket.create_connection((host, int(port)))
        self._read = self._socket.makefile("rb")
        self._initial, self._window = 65_535, 65_535
        self._streams: dict[int, int] = {}
        self._socket.sendall(PREFACE)
        self.send(SETTINGS)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        self._read.close()
        self._socket.close()

    def hang_up(self) -> None:
        """Ends the connection; who reads from it comes to the end."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    @property
    def address(self) -> str:
        """Where the server sees it."""
        return ":".join(map(str, self._socket.getsockname()))

    def send(self, kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", *, times: int = 1) -> None:
        """Sends a frame, or the same one several times at once."""
        head = struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream)
        self._socket.sendall((head + payload) * times)

    def call(self, method: str, *metadata: tuple[str, str]) -> int:
        """Begins a call; returns its stream."""
        stream = 1 + 2 * len(self._streams)
        self._streams[stream] = self._initial
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", "test"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *metadata,
        ]
        self.send(HEADERS, END_HEADERS, stream, b"".join(literal(name, value) for name, value in fields))
        return stream

    def write(self, stream: int, data: bytes) -> int:
        """Sends as much as the windows let through; returns how many bytes that was."""
        sent = 0
        while room := min(self._window, self._streams[stream], len(data) - sent, MAX_FRAME):
            self.send(DATA, 0, stream, data[sent : sent + room])
            self._window -= room
            self._streams[stream] -= room
            sent += room
        return sent

    def read(self) -> Frame | None:
        """Reads a frame and does what it asks for; None at the end of the connection."""
        try:
            head = self._read.read(9)
            if len(head) < 9:
                return None
            size = int.from_bytes(head[:3], "big")
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            frame = Frame(kind, flags, stream, self._read.read(size))
            self._obey(frame)
        except ConnectionError:
            return None
        return frame

    def until(self, *kinds: int) -> Frame | None:
        """Reads until a frame of these kinds."""
        while (frame := self.read()) is not None and frame.kind not in kinds:
            pass
        return frame

    def until_end_of_stream(self) -> bool:
        """Reads until the server has ended a stream; returns False at the end of the connection."""
        while (frame := self.read()) is not None:
            if frame.kind in (DATA, HEADERS) and frame.flags & END_STREAM:
                return True
        return False

    def ping(self) -> bool:
        """Sends a ping and waits for its answer; whatever the server sent before is read then."""
        self.send(PING, payload=b"12345678")
        while (frame := self.read()) is not None:
            if frame.kind == PING and frame.flags & ACK:
                return True
        return False

    def _obey(self, frame: Frame) -> None:
        if frame.kind == SETTINGS and not frame.flags & ACK:
            for at in range(0, len(frame.payload), 6):
                name, value = struct.unpack(">HI", frame.payload[at : at + 6])
                if name == INITIAL_WINDOW_SIZE:
                    for stream in self._streams:
                        self._streams[stream] += value - self._initial
                    self._initial = value
            self.send(SETTINGS, ACK)
        elif frame.kind == WINDOW_UPDATE:
            more = int.from_bytes(frame.payload, "big")
            if frame.stream:
                self._streams[frame.stream] += more
            else:
                self._window += more
        elif frame.kind == PING and not frame.flags & ACK and self.answers:
            self.answers -= 1
            self.send(PING, ACK, payload=frame.payload)


def message(*parts: bytes) -> bytes:
    """Frames a gRPC message."""
    body = b"".join(parts)
    return struct.pack(">BI", 0, len(body)) + body


def literal(name: str, value: str) -> bytes:
    return b"\0" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    encoded = text.encode()
    size, head = len(encoded), []
    if size < 127:
        return bytes([size]) + encoded
    head, size = [127], size - 127
    while size >= 128:
        head.append(size % 128 + 128)
        size //= 128
    return bytes([*head, size]) + encoded
