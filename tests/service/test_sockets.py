"""The server's channel options at work, over real sockets; some clients here are bad ones."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from calls import TIMEOUT, Person, until
from fedround.v1 import model_pb2, user_pb2
from http2 import ENHANCE_YOUR_CALM, GOAWAY, HEADERS, PING, Peer, message
from servers import Server, memory

SUBSCRIBE = "/fedround.v1.RoundService/Subscribe"
UPLOAD = "/fedround.v1.ModelService/UploadModel"
STALLED, MIB = 32, 1 << 20
# A handler that reads nothing.
SLEEPER = """
import asyncio, grpc, sys
from fedround_server.grpc_server import OPTIONS

async def sleep(requests, context):
    await asyncio.Event().wait()

class Sleepers(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.stream_unary_rpc_method_handler(sleep)

async def main():
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((Sleepers(),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # A peer that answers must have the time to, on a busy machine as well.
    options = ("--keepalive-seconds", "1", "--keepalive-timeout-seconds", "4")
    with Server(tmp_path_factory.mktemp("sockets") / "data", options=options) as running:
        yield running


@pytest.fixture
def admin(server: Server) -> Iterator[Person]:
    with grpc.insecure_channel(server.address) as channel:
        yield Person(channel, server.admin_token)


def works(person: Person) -> bool:
    return person.users.GetMyself(user_pb2.GetMyselfRequest()).user.name == "admin"


@pytest.mark.chaos
def test_peers_that_hang_are_found(server: Server) -> None:
    token = ("x-token", server.admin_token)
    calls = ((SUBSCRIBE, b""), (UPLOAD, b"\n\x03\n\x01m"))
    with ExitStack() as stack:
        polite = [(stack.enter_context(Peer(server.address)), *call) for call in calls]
        # Some never answer a ping, others answer a few.
        hung = [(stack.enter_context(Peer(server.address, answers=few)), *call) for call in calls for few in (0, 3)]
        for peer, method, body in (*polite, *hung):
            peer.write(peer.call(method, token), message(body))
        staying = [threading.Thread(target=peer.until, args=[GOAWAY], daemon=True) for peer, *_ in polite]
        for thread in staying:
            thread.start()
        with ThreadPoolExecutor(len(hung)) as pool:
            # They still read what they are sent.
            assert all(pool.map(is_sent_away, [peer for peer, *_ in hung]))
        # A peer that answers has nothing to fear, however long nothing happens.
        assert all(thread.is_alive() for thread in staying)
        # The calls of the others are over, too.
        for peer, method, _ in hung:
            until(lambda line=f"method={method} peer=ipv4:{peer.address} ": line in server.log)
        for peer, *_ in polite:
            peer.hang_up()
        for thread in staying:
            thread.join()


def is_sent_away(peer: Peer) -> bool:
    """Returns whether the server sends GOAWAY, and waits until it has closed the connection."""
    is_notified = peer.until(GOAWAY) is not None
    while peer.read() is not None:
        pass
    return is_notified


def test_only_a_peer_that_pings_too_often_is_disconnected(server: Server, admin: Person) -> None:
    with Peer(server.address) as polite, Peer(server.address) as abuser:
        abuser.send(PING, payload=b"too much", times=8)
        farewell = abuser.until(GOAWAY)
        assert farewell is not None
        assert int.from_bytes(farewell.payload[4:8], "big") == ENHANCE_YOUR_CALM
        assert farewell.payload.endswith(b"too_many_pings")
        assert polite.ping()
        stream = polite.call("/fedround.v1.UserService/GetMyself", ("x-token", server.admin_token))
        polite.write(stream, message())
        answer = polite.until(HEADERS, GOAWAY)
        assert answer is not None
        assert answer.kind == HEADERS
    assert works(admin)


@pytest.mark.parametrize("size", [8 << 10, 9 << 10, 1 << 20])
def test_much_metadata_is_rejected_and_the_server_goes_on(admin: Person, size: int) -> None:
    # Some sizes are rejected now and then only, unless both limits of gRPC are the same.
    for _ in range(5):
        with pytest.raises(grpc.RpcError) as error:
            admin.users.GetMyself(user_pb2.GetMyselfRequest(), metadata=[("x-more", "m" * size)], timeout=TIMEOUT)
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert works(admin)
    admin.users.GetMyself(user_pb2.GetMyselfRequest(), metadata=[("x-more", "m" * (7 << 10))], timeout=TIMEOUT)


def test_a_message_over_2_mib_is_rejected_and_the_server_goes_on(admin: Person) -> None:
    large = model_pb2.UploadModelRequest(chunk=b"m" * (2 * MIB + 1))
    for call in (
        lambda: admin.models.UploadModel(iter([large]), timeout=TIMEOUT),
        lambda: admin.users.CreateUser(user_pb2.CreateUserRequest(name="m" * (2 * MIB + 1)), timeout=TIMEOUT),
    ):
        with pytest.raises(grpc.RpcError) as error:
            call()
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert works(admin)


@pytest.mark.serial
def test_a_stalled_upload_costs_little_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLEEPER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peers: list[Peer] = []
        try:
            assert process.stdout is not None
            address = f"127.0.0.1:{process.stdout.readline().strip()}"
            stall(address, peers, 2)
            before, sent = memory(process.pid, "VmRSS"), stall(address, peers, STALLED)
            each = (memory(process.pid, "VmRSS") - before) / STALLED
            sys.stdout.write(f"{each / MIB:.2f} MiB a stalled upload, {sent / STALLED / MIB:.2f} MiB sent\n")
            # It was given more than it read, and was stopped.
            assert sent > STALLED * (1 << 16)
            assert each < 1.3 * MIB
        finally:
            for peer in peers:
                peer.__exit__()
            process.kill()


def stall(address: str, peers: list[Peer], count: int) -> int:
    """Opens uploads that send until nothing goes any more; returns how many bytes went."""
    chunk, sent = message(bytes(MIB)), 0
    for _ in range(count):
        peer = Peer(address)
        peers.append(peer)
        assert peer.ping()
        stream, rest = peer.call("/test/Sleep"), b""
        quiet = 0
        # Windows that are opened come before the answer to a ping.
        while quiet < 3:
            rest = rest or chunk
            went = peer.write(stream, rest)
            rest = rest[went:]
            sent += went
            quiet = 0 if went else quiet + 1
            if not went:
                assert peer.ping()
    return sent
