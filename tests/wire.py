"""A proxy for one connection, which a test can cut, and which can damage data."""

import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self

# Closing a socket with this option resets the connection, as when a machine loses power.
RESET = struct.pack("ii", 1, 0)


class Wire:
    """A proxy to a server, for one connection. Can be used within its `with` block."""

    def __init__(self, address: str, damages: bytes = b"") -> None:
        """Opens the proxy.

        Args:
            address: HOST:PORT of the server.
            damages: Bytes whose first occurrence has one bit flipped; empty for none.
        """
        self._damages = damages
        self.has_damaged = threading.Event()
        host, port = address.split(":")
        self._target = host, int(port)
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._connect, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        self._listener.close()

    def cut(self) -> None:
        """Ends the connection on both sides at once."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                # Wakes the reading thread, which would keep the socket open otherwise.
                end.shutdown(socket.SHUT_RD)
            end.close()

    def _connect(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(self._target)
        self._ends = [near, far]
        for source, target in ((near, far), (far, near)):
            threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(self._damage(data))

    def _damage(self, data: bytes) -> bytes:
        start = data.find(self._damages)
        if not self._damages or start < 0 or self.has_damaged.is_set():
            return data
        self.has_damaged.set()
        return data[:start] + bytes([data[start] ^ 0x10]) + data[start + 1 :]
