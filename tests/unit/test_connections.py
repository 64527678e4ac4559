"""Which connections are closed, and which are not."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from fedround_server.host.connections import Connections, _format

MAX_WAITING = 500
Connect = Callable[[], tuple[socket.socket, str]]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes connections to a port of this process; returns the peer's end and its name."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def make() -> tuple[socket.socket, str]:
            peer = stack.enter_context(socket.create_connection(listener.getsockname()))
            accepted, (host, port) = listener.accept()
            stack.enter_context(accepted)
            return peer, f"ipv4:{host}:{port}"

        yield make


def make(connect: Connect, peer: socket.socket, per_address: int = 100, total: int = 100) -> Connections:
    connections = Connections(per_address, total, 3, lambda: 0, MAX_WAITING)
    connections._port = peer.getpeername()[1]
    return connections


def is_closed(peer: socket.socket) -> bool:
    peer.setblocking(False)
    try:
        return peer.recv(1) == b""
    except BlockingIOError:
        return False


def test_surplus_connections_are_the_latest_unless_old(connect: Connect) -> None:
    peers = [connect() for _ in range(5)]
    connections = make(connect, peers[0][0], per_address=2)
    for seconds, (_, name) in enumerate(peers):
        connections._scan(float(seconds), complete=True)
        connections.accept(name)
    # All are authenticated.
    assert connections._surplus(5.0) == set()
    for _, name in peers:
        connections.forget(name)
    names = [name for _, name in peers]
    assert len(connections._surplus(5.0)) == 3
    # After ten seconds without an authenticated call, others come first.
    newcomer = connect()
    connections._scan(100.0, complete=True)
    assert newcomer[1] not in connections._surplus(100.0)
    assert len(connections._surplus(100.0) & set(names)) == 4


def test_the_total_is_shared_by_addresses(connect: Connect) -> None:
    peers = [connect() for _ in range(6)]
    connections = make(connect, peers[0][0], per_address=5, total=3)
    connections._scan(0.0, complete=True)
    assert len(connections._surplus(1.0)) == 3


def test_a_connection_whose_calls_are_rejected_is_closed(connect: Connect) -> None:
    (one, name), (other, other_name) = connect(), connect()
    connections = make(connect, one)
    for _ in range(2):
        connections.reject(name)
        connections.reject(other_name)
    connections.accept(other_name)
    for _ in range(5):
        connections.reject(other_name)
    connections.reject(name)
    assert is_closed(one)
    assert not is_closed(other)


def test_a_flood_closes_only_connections_with_rejected_calls(connect: Connect) -> None:
    (one, name), (other, other_name) = connect(), connect()
    connections = make(connect, one)
    for peer in (one, other):
        peer.sendall(bytes(27 * MAX_WAITING + 27))
    connections.reject(name)
    connections._scan(0.0, complete=True)
    assert connections._heaviest() == {name}
    connections.accept(name)
    assert connections._heaviest() == set()
    assert not connections.is_authenticated(other_name)


def test_grpc_is_asked_for_waiting_calls_only_when_some_were_rejected(connect: Connect) -> None:
    asked: list[int] = []

    def received() -> int:
        asked.append(2 * MAX_WAITING)
        return asked[-1]

    one, name = connect()
    connections = Connections(100, 100, 3, received, MAX_WAITING)
    connections._port = one.getpeername()[1]
    connections.take_call()
    assert not connections._are_too_many_waiting(due=False)
    assert asked == []
    connections.reject(name)
    assert connections._are_too_many_waiting(due=False)
    connections.take_call()
    assert not connections._are_too_many_waiting(due=False)
    # Every few seconds in any case.
    connections._are_too_many_waiting(due=True)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [
        (("127.0.0.1", 1), "ipv4:127.0.0.1:1"),
        (("::ffff:10.0.0.1", 2, 0, 0), "ipv4:10.0.0.1:2"),
        (("2001:db8::1", 3, 0, 0), "ipv6:%5B2001:db8::1%5D:3"),
        (("fe80::1%eth0", 4, 0, 2), "ipv6:%5Bfe80::1%25eth0%5D:4"),
    ],
)
def test_peers_are_named_as_by_grpc(endpoint: tuple[str, int], name: str) -> None:
    assert _format(*endpoint) == name
