"""Peers on loopback that are no fedround server: they answer with HTTP, with TLS, with nothing, or not at all."""

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from http2 import ACK, DATA, END_HEADERS, HEADERS, PING, PREFACE, SETTINGS, literal

END_STREAM = 1

Handler = Callable[[Any], None]


@contextmanager
def listening(handler: Handler, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Runs a peer; yields its address.

    Args:
        handler: Serves one connection, in a thread of its own.
        tls: Encrypts connections.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: Any) -> None:
        with suppress(OSError):
            if tls is not None:
                connection = tls.wrap_socket(connection, server_side=True)
            handler(connection)
        connection.close()

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        # Wakes the thread that accepts.
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()
        listener.close()


def dead_port() -> str:
    """Returns an address at which nothing listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def saying(data: bytes) -> Handler:
    """Returns a peer that reads something, says something, and hangs up."""

    def handle(connection: Any) -> None:
        connection.recv(1 << 16)
        connection.sendall(data)

    return handle


def answering(status: int, body: bytes = b"", calls: list[int] | None = None) -> Handler:
    """Returns a web server with HTTP/2 that answers every request at once with a status, and a page.

    Args:
        status: The HTTP status.
        body: The page.
        calls: Gets the stream of each request.
    """

    def answer(connection: Any, stream: int) -> None:
        if calls is not None:
            calls.append(stream)
        head = literal(":status", str(status)) + literal("content-type", "text/html")
        connection.sendall(_frame(HEADERS, END_HEADERS | (0 if body else END_STREAM), stream, head))
        if body:
            connection.sendall(_frame(DATA, END_STREAM, stream, body))

    return lambda connection: _serve_http2(connection, answer)


def silent(calls: list[int]) -> Handler:
    """Returns a peer that speaks HTTP/2, answers every ping, and answers no request.

    Args:
        calls: Gets the stream of each request.
    """
    return lambda connection: _serve_http2(connection, lambda _, stream: calls.append(stream))


def _serve_http2(connection: Any, on_request: Callable[[Any, int], None]) -> None:
    with closing(connection.makefile("rb")) as incoming:
        incoming.read(len(PREFACE))
        connection.sendall(_frame(SETTINGS, 0, 0))
        while len(head := incoming.read(9)) == 9:
            size = int.from_bytes(head[:3], "big")
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            payload = incoming.read(size)
            if kind == HEADERS:
                on_request(connection, stream)
            elif kind in (SETTINGS, PING) and not flags & ACK:
                connection.sendall(_frame(kind, ACK, 0, payload if kind == PING else b""))


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload
