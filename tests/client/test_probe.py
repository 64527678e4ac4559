"""The short connection that finds out why a server cannot be reached."""

import gc
import select
import socket
import struct
from contextlib import closing

import grpc
import pytest

from fedround_client import probe
from fedround_client.channel import Target
from fedround_client.errors import ServerUnavailable

RESET = struct.pack("ii", 1, 0)


def reset_connection() -> socket.socket:
    """Returns a connection that its peer has reset."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        connection = socket.create_connection(listener.getsockname(), 5)
        peer, _ = listener.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        peer.close()
        assert select.select([connection], [], [], 5)[0]
        return connection


@pytest.mark.parametrize("insecure", [True, False])
def test_a_connection_that_is_reset_before_the_handshake_is_closed(
    insecure: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_connect", lambda *_: reset_connection())
    error = ServerUnavailable(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", "refused")
    assert probe.explain(Target("127.0.0.1:1", insecure=insecure), error) is error
    # An open socket would be reported here, and fail the test.
    gc.collect()
