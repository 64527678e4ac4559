"""Several addresses: calls go round the replicas, and past those that are gone or do not serve."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from certificates import Authority, Certificate
from fedround.v1 import round_pb2_grpc, user_pb2_grpc
from fedround.v1.event_pb2 import Event, GoingAway, Heartbeat, TrainingFinished
from fedround.v1.user_pb2 import CreateUserRequest, CreateUserResponse, GetMyselfRequest, GetMyselfResponse, User
from fedround_client import (
    Client,
    DeadlineExceeded,
    NotFound,
    ServerUnavailable,
    Unauthenticated,
    channel,
    connect,
    replicas,
)
from fedround_client.address import split_addresses
from fedround_client.channel import Target
from fedround_client.health import CHECK
from scripted_peers import dead_port, listening

pytestmark = pytest.mark.timeout(30)

TRAINING = "0b7f4b1e-8ad6-4e7a-9d38-5a3ad8bd1c11"
SERVING, NOT_SERVING = 1, 2


class Replica(user_pb2_grpc.UserServiceServicer, round_pb2_grpc.RoundServiceServicer):
    """A scripted replica on a port of its own."""

    def __init__(self, name: str, certificate: Certificate | None = None) -> None:
        self.name = name
        self._certificate = certificate
        self.port = 0
        self.health = SERVING
        self.failure: grpc.StatusCode | None = None
        self.created = 0
        self.subscribed: list[dict[str, int]] = []
        self.leave = threading.Event()
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        user_pb2_grpc.add_UserServiceServicer_to_server(self, self._server)
        round_pb2_grpc.add_RoundServiceServicer_to_server(self, self._server)
        check = grpc.unary_unary_rpc_method_handler(
            lambda request, context: Int32Value(value=self.health),
            request_deserializer=StringValue.FromString,
            response_serializer=Int32Value.SerializeToString,
        )
        service, method = CHECK.strip("/").split("/")
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: check}),))
        if self._certificate is None:
            self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        else:
            credentials = grpc.ssl_server_credentials([(self._certificate.key, self._certificate.chain)])
            self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def _fail(self, context) -> None:
        context.set_trailing_metadata((("fedround-replica", self.name),))
        if self.failure is not None:
            context.abort(self.failure, "no")

    def GetMyself(self, request, context):  # noqa: N802
        self._fail(context)
        return GetMyselfResponse(user=User(name=self.name))

    def CreateUser(self, request, context):  # noqa: N802
        self.created += 1
        self._fail(context)
        return CreateUserResponse(user=User(name=self.name))

    def Subscribe(self, request, context):  # noqa: N802
        self.subscribed.append(dict(request.resume_after_sequence))
        position = request.resume_after_sequence[TRAINING]
        yield Event(training_id=TRAINING, sequence=position + 1, heartbeat=Heartbeat())
        if position == 2:
            yield Event(training_id=TRAINING, sequence=position + 2, training_finished=TrainingFinished())
            return
        while not self.leave.wait(0.02):
            if not context.is_active():
                return
        yield Event(training_id=TRAINING, sequence=position + 2, training_started={})
        self.health = NOT_SERVING
        yield Event(going_away=GoingAway(message="bye"))


@pytest.fixture(autouse=True)
def _fast_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(replicas, "LONGEST_PAUSE", 0.1)


@pytest.fixture
def pair() -> Iterator[tuple[Replica, Replica]]:
    with ExitStack() as stack:
        both = Replica("a"), Replica("b")
        for one in both:
            stack.callback(one.stop)
        yield both


@pytest.fixture
def client(pair: tuple[Replica, Replica]) -> Iterator[Client]:
    with connect(",".join(one.address for one in pair), "my-token") as client:
        yield client


def names(client: Client, number: int = 4) -> set[str]:
    return {client.myself().name for _ in range(number)}


def eventually(client: Client, expected: set[str]) -> None:
    while names(client) != expected:
        time.sleep(0.05)


def test_calls_go_to_one_replica_after_the_other(client: Client) -> None:
    called = [client.myself().name for _ in range(6)]
    assert called in (["a", "b"] * 3, ["b", "a"] * 3)


def test_a_replica_that_is_gone_is_passed_by_and_used_again_when_it_is_back(
    client: Client, pair: tuple[Replica, Replica]
) -> None:
    assert names(client) == {"a", "b"}
    pair[0].stop()
    # Not idempotent, too: a call without a connection has not begun.
    for _ in range(4):
        client._rpc.unary(client._rpc.users.CreateUser, CreateUserRequest())
    assert names(client) == {"b"}
    assert pair[1].created == 4
    pair[0].start()
    eventually(client, {"a", "b"})


def test_a_replica_that_does_not_serve_is_not_used_until_it_does(client: Client, pair: tuple[Replica, Replica]) -> None:
    pair[0].failure, pair[0].health = grpc.StatusCode.UNAVAILABLE, NOT_SERVING
    assert names(client) == {"b"}
    pair[0].failure = None
    time.sleep(0.3)
    assert names(client) == {"b"}
    pair[0].health = SERVING
    eventually(client, {"a", "b"})


def test_a_call_that_may_have_been_carried_out_is_not_repeated(client: Client, pair: tuple[Replica, Replica]) -> None:
    for one in pair:
        one.failure = grpc.StatusCode.UNAVAILABLE
    with pytest.raises(ServerUnavailable):
        client._rpc.unary(client._rpc.users.CreateUser, CreateUserRequest())
    assert sum(one.created for one in pair) == 1


def test_errors_name_the_replica(client: Client, pair: tuple[Replica, Replica]) -> None:
    for one in pair:
        one.failure = grpc.StatusCode.NOT_FOUND
    seen = set()
    for _ in range(2):
        with pytest.raises(NotFound) as caught:
            client.myself()
        seen.add((caught.value.replica, caught.value.address))
        assert str(caught.value).endswith(f"(replica {caught.value.replica} at {caught.value.address})")
    assert seen == {("a", pair[0].address), ("b", pair[1].address)}


def test_errors_behind_a_single_address_name_the_replica(pair: tuple[Replica, Replica]) -> None:
    pair[0].failure = grpc.StatusCode.NOT_FOUND
    with connect(pair[0].address, "my-token") as client, pytest.raises(NotFound) as caught:
        client.myself()
    assert (caught.value.replica, caught.value.address) == ("a", "")
    assert str(caught.value) == "NOT_FOUND: no (replica a)"


def test_errors_of_a_replica_without_a_name_have_its_address(client: Client, pair: tuple[Replica, Replica]) -> None:
    for one in pair:
        one.failure, one.name = grpc.StatusCode.UNAUTHENTICATED, ""
    with pytest.raises(Unauthenticated) as caught:
        client.myself()
    assert str(caught.value) == f"UNAUTHENTICATED: no (replica at {caught.value.address})"


def test_when_all_are_gone_the_error_names_the_last_one() -> None:
    first, second = dead_port(), dead_port()
    with connect(f"{first},{second}", "my-token") as client, pytest.raises(ServerUnavailable) as caught:
        client.myself()
    assert caught.value.address in (first, second)
    assert f"The server at {caught.value.address} cannot be reached" in str(caught.value)
    assert "(replica" not in str(caught.value)


def test_a_hung_replica_is_named_and_passed_by(pair: tuple[Replica, Replica]) -> None:
    hang = threading.Event()
    with (
        listening(lambda connection: hang.wait(20)) as hung,
        connect(f"{hung},{pair[0].address}", "my-token") as client,
    ):
        rpc, errors = client._rpc, []
        for _ in range(4):
            try:
                rpc.unary(rpc.users.GetMyself, GetMyselfRequest(), timeout=0.5)
            except (DeadlineExceeded, ServerUnavailable) as error:
                errors.append(error)
        assert len(errors) <= 1
        assert all(error.address == hung and hung in str(error) for error in errors)
        hang.set()


def test_a_subscription_resumes_at_another_replica(client: Client, pair: tuple[Replica, Replica]) -> None:
    kinds = []

    def follow() -> None:
        kinds.extend(event.WhichOneof("payload") for event in client.watch(TRAINING))

    thread = threading.Thread(target=follow)
    thread.start()
    while not any(one.subscribed for one in pair):
        time.sleep(0.01)
    began = time.monotonic()
    for one in pair:
        one.leave.set()
    thread.join(10)
    assert not thread.is_alive()
    assert kinds == ["training_started", "training_finished"]
    assert sorted((one.subscribed for one in pair), key=str) == [[{TRAINING: 2}], [{}]]
    assert time.monotonic() - began < 5


def test_a_subscription_goes_on_when_its_replica_dies(client: Client, pair: tuple[Replica, Replica]) -> None:
    kinds = []

    def follow() -> None:
        for event in client.watch(TRAINING, resume_after=1, heartbeats=True):
            kinds.append(event.WhichOneof("payload"))

    thread = threading.Thread(target=follow)
    thread.start()
    while not kinds:
        time.sleep(0.01)
    next(one for one in pair if one.subscribed).stop()
    thread.join(10)
    assert not thread.is_alive()
    assert kinds == ["heartbeat", "heartbeat", "training_finished"]


def test_each_replica_has_a_certificate_for_its_own_name(tmp_path: Path) -> None:
    authority = Authority()
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    hosts = ("localhost", "127.0.0.1")
    with ExitStack() as stack:
        pair = [Replica(host, authority.issue(host)) for host in hosts]
        for one in pair:
            stack.callback(one.stop)
        addresses = ",".join(f"{one.name}:{one.port}" for one in pair)
        client = stack.enter_context(connect(addresses, "my-token", tls_ca=tmp_path / "ca.pem"))
        assert names(client) == set(hosts)


@pytest.mark.parametrize(
    ("servers", "words"),
    [
        ("a:1,b", "The address b has no port"),
        ("a:1,,b:2", "empty entry"),
        ("a:1,", "empty entry"),
        ("a:1,unix:/run/x", "unix:/run/x is a UNIX socket"),
        ("a:1,http://b:2", "The address http://b:2 is a URL"),
        ("a:1,b:99999", "The address b:99999"),
        ("127.0.0.1:1;127.0.0.1:2", "addresses are separated by commas"),
    ],
)
def test_a_list_with_a_bad_entry_is_rejected(servers: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        connect(servers, "my-token")


def test_addresses_are_taken_once() -> None:
    assert split_addresses("a:1, b:2,A:1,[::1]:3") == ("A:1", "b:2", "[::1]:3")
    assert split_addresses("unix:/run/x") == ("unix:/run/x",)
    assert split_addresses("ipv4:127.0.0.1:1,127.0.0.2:1") == ("ipv4:127.0.0.1:1", "127.0.0.2:1")


@pytest.mark.parametrize("kind", [list, tuple])
def test_addresses_are_taken_as_a_sequence(pair: tuple[Replica, Replica], kind: type[list[str]]) -> None:
    with connect(kind(one.address for one in pair), "my-token") as client:
        assert names(client) == {"a", "b"}
    with connect(kind([pair[0].address]), "my-token") as client:
        assert names(client) == {"a"}


@pytest.mark.parametrize("server", [50051, b"a:1", ["a:1", 2], {"a:1"}])
def test_what_is_no_address_is_answered_with_the_name_of_the_argument(server: Any) -> None:
    with pytest.raises(TypeError, match=r"^server must be an address HOST:PORT, or a sequence of addresses, not "):
        connect(server, "my-token")


def test_an_empty_sequence_of_addresses_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^server is an empty sequence"):
        connect([], "my-token")


def test_the_variable_takes_a_list(pair: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDROUND_SERVER", ",".join(one.address for one in pair))
    with connect(token="my-token") as client:
        assert names(client) == {"a", "b"}


V4, V6 = ((family, socket.SOCK_STREAM, 0, "", ()) for family in (socket.AF_INET, socket.AF_INET6))


@pytest.mark.parametrize(
    ("server", "found", "expected"),
    [
        ("fedround.example.org:1", [V4, V4], True),
        ("dns:///fedround.example.org:1", [V6, V6, V4], True),
        # One machine with both families.
        ("fedround.example.org:1", [V4, V6], False),
        ("fedround.example.org:1", [], False),
        ("localhost:1", [V4, V4], False),
        ("10.0.0.1:1", [V4, V4], False),
        ("[::1]:1", [V6, V6], False),
        ("unix:/run/x", [V4, V4], False),
    ],
)
def test_a_name_with_several_addresses_is_balanced(
    server: str, found: list[Any], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: dict[str, Any] = {}

    def open_channel(target: str, options: Any) -> None:
        opened.update(options)

    monkeypatch.setattr(channel.grpc, "insecure_channel", open_channel)
    monkeypatch.setattr(channel.socket, "getaddrinfo", lambda *_, **__: found)
    Target(server, insecure=True).open_channel()
    config = json.loads(opened["grpc.service_config"])
    assert ("loadBalancingConfig" in config) == expected
    assert config["methodConfig"][0]["retryPolicy"]["maxAttempts"] == 5
    assert opened["grpc.keepalive_time_ms"] == 30_000


def test_a_name_that_cannot_be_resolved_is_left_to_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise socket.gaierror("no such name")

    monkeypatch.setattr(channel.socket, "getaddrinfo", fail)
    connect("nowhere.invalid:1", "my-token", insecure=True).close()
