"""Unauthenticated peers that want to use up the server: what they cost is bounded, and users are served meanwhile."""

import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from calls import TIMEOUT, Person, fails_with, until
from fedround.v1 import user_pb2
from http2 import END_HEADERS, GOAWAY, HEADERS, RST_STREAM, Peer
from servers import MODULE, Server, memory

MIB = 1 << 20
MOST = 64 * MIB
MYSELF = "/fedround.v1.UserService/GetMyself"
CHECK = "/grpc.health.v1.Health/Check"
CANCEL = struct.pack(">I", 8)
PER_ADDRESS = 20
# Nothing here is to be rejected for its rate but endless reflection.
OPTIONS = (
    "--max-unauthenticated-connections-per-address",
    str(PER_ADDRESS),
    "--max-calls-per-second-per-user",
    "5000",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("hostile") / "data", options=OPTIONS, program=MODULE) as running:
        yield running


@pytest.fixture
def admin(server: Server) -> Iterator[Person]:
    """A user with a connection of its own that has made a call."""
    with grpc.insecure_channel(server.address) as channel:
        one = Person(channel, server.admin_token)
        assert works(one)
        yield one


def works(person: Person) -> bool:
    return person.users.GetMyself(user_pb2.GetMyselfRequest(), timeout=TIMEOUT).user.name == "admin"


class Memory:
    """How much memory a server has taken since this was made."""

    def __init__(self, server: Server) -> None:
        self._pid = server.pid
        self._before = memory(self._pid, "RssAnon")

    def grown(self) -> int:
        """Bytes."""
        return memory(self._pid, "RssAnon") - self._before


def flood(peer: Peer, method: str, count: int, *, reset: bool = False) -> None:
    """Begins calls without a message until the server closes the connection."""
    reading = threading.Thread(target=peer.until, args=[GOAWAY], daemon=True)
    reading.start()
    with suppress(OSError):
        for _ in range(count):
            stream = peer.call(method)
            if reset:
                peer.send(RST_STREAM, 0, stream, CANCEL)
    peer.hang_up()
    reading.join()


@pytest.mark.serial
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("method", [MYSELF, CHECK, "/no/Such"])
def test_calls_without_a_message(server: Server, admin: Person, method: str, reset: bool) -> None:
    memory, grown = Memory(server), 0
    for _ in range(3):
        with Peer(server.address) as peer:
            flooding = threading.Thread(target=flood, args=[peer, method, 10_000], kwargs={"reset": reset})
            flooding.start()
            while flooding.is_alive():
                until(lambda: is_served(admin))
                grown = max(grown, memory.grown())
                flooding.join(0.05)
    sys.stdout.write(f"{grown / MIB:.0f} MiB\n")
    assert grown < MOST
    assert works(admin)


@pytest.mark.serial
def test_connections_of_an_address(server: Server, admin: Person) -> None:
    memory = Memory(server)
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer(server.address)) for _ in range(5 * PER_ADDRESS)]
        stay = [threading.Thread(target=drain, args=[peer], daemon=True) for peer in peers]
        for thread in stay:
            thread.start()
        until(lambda: sum(thread.is_alive() for thread in stay) <= PER_ADDRESS)
        assert works(admin)
        # A connection with an authenticated call is none of them, even while its first call goes on.
        events = admin.subscribe()
        with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            newcomer = Person(channel, server.admin_token)
            until(lambda: is_served(newcomer))
            assert works(newcomer)
        events.cancel()
        assert memory.grown() < MOST
        for peer in peers:
            peer.hang_up()


def drain(peer: Peer) -> None:
    """Reads to the end of the connection."""
    while peer.read() is not None:
        pass


def is_served(person: Person) -> bool:
    """Calls once; a server that is flooded may cancel a call, or close a connection that it does not know."""
    try:
        return works(person)
    except grpc.RpcError:
        return False


def test_a_connection_whose_calls_are_all_rejected_is_closed(server: Server, admin: Person) -> None:
    with Peer(server.address) as peer:
        rejected = 0
        with suppress(OSError):
            while rejected < 2000:
                for _ in range(50):
                    peer.call(MYSELF)
                # An answer is one frame of headers or two; the last ends its stream.
                for _ in range(50):
                    rejected += peer.until_end_of_stream()
                if not peer.ping():
                    break
        # It is closed sooner while the server is flooded, and the last answers may be lost with it.
        assert 0 < rejected <= 1000
    assert works(admin)


def test_health_watches_of_an_address(server: Server, admin: Person) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT) for _ in range(100)]
        for watch in watches:
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        with fails_with("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS", "too many calls without a token"):
            next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT))
        assert works(admin)
        for watch in watches:
            watch.cancel()
        until(lambda: is_healthy(stub))


def is_healthy(stub: health_pb2_grpc.HealthStub) -> bool:
    try:
        return stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT).status == 1
    except grpc.RpcError:
        return False


def test_endless_reflection_ends(tmp_path: Path) -> None:
    def ask() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        while True:
            yield reflection_pb2.ServerReflectionRequest(list_services="")

    options = ("--max-calls-per-second-per-user", "10")
    with Server(tmp_path / "data", options=options) as server, grpc.insecure_channel(server.address) as channel:
        stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(ask(), timeout=TIMEOUT)
        with fails_with("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS", "came from your address"):
            list(stream)
        # Calls with a token have a rate of their own.
        assert works(Person(channel, server.admin_token))


def test_no_message_is_awaited_of_an_unknown_caller(server: Server, admin: Person) -> None:
    with Peer(server.address) as peer:
        for token in ((), (("x-token", "fr_" + "A" * 43),)):
            stream = peer.call(MYSELF, *token)
            frame = peer.until(HEADERS)
            assert frame is not None
            assert (frame.stream, frame.flags & END_HEADERS) == (stream, END_HEADERS)
