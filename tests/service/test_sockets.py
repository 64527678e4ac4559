"""The server's channel options at work, over real sockets; some clients here are bad ones."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from calls import Person, until
from fedround.v1 import model_pb2, user_pb2
from http2 import ENHANCE_YOUR_CALM, GOAWAY, HEADERS, PING, Peer, message
from servers import Server

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
    options = ("--keepalive-seconds", "1", "--keepalive-timeout-seconds", "1")
    with Server(tmp_path_factory.mktemp("sockets") / "data", options=options) as running:
        yield running


@pytest.fixture
def admin(server: Server) -> Iterator[Person]:
    with grpc.insecure_channel(server.address) as channel:
        yield Person(channel, server.admin_token)


def works(person: Person) -> bool:
    return person.users.GetMyself(user_pb2.GetMyselfRequest()).user.name == "admin"


@pytest.mark.parametrize("answers", [0, 3])
@pytest.mark.parametrize(("method", "body"), [(SUBSCRIBE, b""), (UPLOAD, b"\n\x03\n\x01m")])
def test_a_peer_that_hangs_is_found(server: Server, method: str, body: bytes, answers: int) -> None:
    token = ("x-token", server.admin_token)
    with Peer(server.address) as polite, Peer(server.address, answers=answers) as hung:
        for peer in (polite, hung):
            peer.write(peer.call(method, token), message(body))
        stays = threading.Thread(target=polite.until, args=[GOAWAY], daemon=True)
        stays.start()
        began = time.monotonic()
        # It still reads what it is sent; it only answers no ping.
        assert hung.until(GOAWAY) is not None
        while hung.read() is not None:
            pass
        sys.stdout.write(f"found after {time.monotonic() - began:.1f} s\n")
        # Somebody who answers has nothing to fear, however long nothing happens.
        assert stays.is_alive()
        # Its call is over, too.
        until(lambda: f"method={method} peer=ipv4:{hung.address} " in server.log)
        polite.hang_up()
        stays.join()


def test_who_pings_too_often_is_sent_away_and_nobody_else(server: Server, admin: Person) -> None:
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
def test_much_metadata_is_refused_and_the_server_goes_on(admin: Person, size: int) -> None:
    # Some sizes are refused now and then only, unless both limits of gRPC are the same.
    for _ in range(10):
        with pytest.raises(grpc.RpcError) as error:
            admin.users.GetMyself(user_pb2.GetMyselfRequest(), metadata=[("x-more", "m" * size)], timeout=30)
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert works(admin)
    admin.users.GetMyself(user_pb2.GetMyselfRequest(), metadata=[("x-more", "m" * (7 << 10))], timeout=30)


def test_a_message_over_2_mib_is_refused_and_the_server_goes_on(admin: Person) -> None:
    large = model_pb2.UploadModelRequest(chunk=b"m" * (2 * MIB + 1))
    for call in (
        lambda: admin.models.UploadModel(iter([large]), timeout=30),
        lambda: admin.users.CreateUser(user_pb2.CreateUserRequest(name="m" * (2 * MIB + 1)), timeout=30),
    ):
        with pytest.raises(grpc.RpcError) as error:
            call()
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert works(admin)


def test_a_stalled_upload_costs_little_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLEEPER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peers: list[Peer] = []
        try:
            assert process.stdout is not None
            address = f"127.0.0.1:{process.stdout.readline().strip()}"
            stall(address, peers, 2)
            before, sent = resident(process.pid), stall(address, peers, STALLED)
            each = (resident(process.pid) - before) / STALLED
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


def resident(pid: int) -> int:
    """Bytes of memory of a process that are resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) << 10
