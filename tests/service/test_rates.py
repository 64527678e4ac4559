"""Limits on the rate of calls, of users and of unauthenticated peers."""

import time
from collections.abc import Iterator

import grpc
import pytest

import fedround_client as fr
from calls import ErrorDetails, Person, fails_with, read_error, until
from fedround.v1 import user_pb2
from fedround_client.clock import SystemClock
from servers import Server

# A burst may have a minute's worth.
LIMITS = ("--max-calls-per-second-per-user", "1", "--max-calls-per-second", "3")
ME = user_pb2.GetMyselfRequest()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("rates") / "data", options=LIMITS) as running:
        yield running


@pytest.fixture(scope="module")
def admin(server: Server) -> Iterator[Person]:
    with grpc.insecure_channel(server.address) as channel:
        yield Person(channel, server.admin_token)


def connect(server: Server, token: str) -> Person:
    """A person over a connection of its own."""
    return Person(grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]), token)


def call_until_rejected(person: Person, reason: str) -> ErrorDetails:
    """Calls until a call is answered with a reason."""
    while True:
        try:
            person.users.GetMyself(ME)
        except grpc.RpcError as error:
            if (details := read_error(error)).reason == reason:
                return details


def test_an_unauthenticated_peer_is_rejected_before_its_token_is_checked(server: Server, admin: Person) -> None:
    known, unknown = connect(server, server.admin_token), connect(server, "wrong")
    assert known.users.GetMyself(ME).user.user_id == admin.users.GetMyself(ME).user.user_id
    details = call_until_rejected(unknown, "TOO_MANY_CALLS")
    assert details.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details.metadata == {"limit": "max_calls_per_second_per_user"}
    assert "calls without a valid token came from your address" in details.message
    assert {"QuotaFailure", "RetryInfo"} <= set(details.details)
    # An authenticated connection is exempt; a new one from the same address is not.
    known.users.GetMyself(ME)
    until(lambda: call_until_rejected(unknown, "TOO_MANY_CALLS") and is_rejected_at_once(server))
    known.users.GetMyself(ME)
    for person in (known, unknown):
        person.channel.close()


def is_rejected_at_once(server: Server) -> bool:
    """Calls with a valid token over a new connection; the bucket may have got a token meanwhile."""
    person = connect(server, server.admin_token)
    try:
        person.users.GetMyself(ME)
    except grpc.RpcError as error:
        return "came from your address" in read_error(error).message
    finally:
        person.channel.close()
    return False


class RecordingClock(SystemClock):
    """Real time that records the waits."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def sleep_for(self, duration: float) -> None:
        self.waits.append(duration)
        time.sleep(duration)


def test_calls_of_one_user(server: Server, admin: Person) -> None:
    busy, other = (admin.make(server.address, "CLIENT") for _ in range(2))
    details = call_until_rejected(busy, "TOO_MANY_CALLS")
    assert details.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details.metadata == {"limit": "max_calls_per_second_per_user"}
    assert "you call more often than 1 times per second: wait" in details.message
    assert {"QuotaFailure", "RetryInfo"} <= set(details.details)
    other.users.GetMyself(ME)
    clock = RecordingClock()
    with fr.Client(grpc.insecure_channel(server.address), busy.token, clock=clock) as client:
        # On a slow machine there may be tokens again before the first call.
        while not clock.waits:
            assert client.myself().user_id == busy.user_id
    for person in (busy, other):
        person.channel.close()


def test_calls_of_all_users(server: Server, admin: Person) -> None:
    users = [admin.make(server.address, "CLIENT") for _ in range(5)]
    limits = [call_until_rejected(user, "TOO_MANY_CALLS").metadata["limit"] for user in users]
    # The last ones find no token in the common bucket, though there is one in their own.
    assert limits[-1] == "max_calls_per_second"
    with fails_with("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS", "called more often than 3 times per second: wait"):
        while True:
            admin.users.GetMyself(ME)
    for person in users:
        person.channel.close()
