"""Messages that cannot be decoded get an error like any other, whichever call they are a part of."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calls import TIMEOUT, Person, fails_with, read_error, until
from fedround.v1 import model_pb2, round_pb2
from fedround_server.grpc_server import SERVICES
from servers import Server

# A field of 255 bytes, of which three are there.
TRAININGS = "/fedround.v1.TrainingService/GetTrainings"
BAD = b"\x0a\xff\x01abc"
METHODS = {f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
OPEN = [name for name in METHODS if "health" in name or "reflection" in name]
GUARDED = [name for name in METHODS if name not in OPEN]


def call(channel: grpc.Channel, name: str, *messages: bytes, token: str = "") -> list[bytes]:
    """Calls a method with messages as they are; returns its answers as they are."""
    method = METHODS[name]
    kinds = {False: "unary", True: "stream"}
    make = getattr(channel, f"{kinds[method.client_streaming]}_{kinds[method.server_streaming]}")
    request: Any = iter(messages) if method.client_streaming else messages[0]
    metadata = [("x-token", token)] if token else []
    answer = make(name)(request, metadata=metadata, timeout=TIMEOUT)
    return list(answer) if method.server_streaming else [answer]


@pytest.mark.parametrize("name", GUARDED)
def test_a_known_user_is_told_and_others_are_not(server: Server, admin: Person, name: str) -> None:
    words = f"a message of {name.rpartition('/')[2]} cannot be decoded"
    with fails_with("INVALID_ARGUMENT", "MESSAGE_INVALID", words):
        call(admin.channel, name, BAD, token=admin.token)
    for token, reason in (("", "TOKEN_MISSING"), ("fr_" + "A" * 43, "TOKEN_INVALID")):
        with fails_with("UNAUTHENTICATED", reason):
            call(admin.channel, name, BAD, token=token)


@pytest.mark.parametrize("name", OPEN)
def test_methods_without_a_token(server: Server, name: str) -> None:
    with (
        grpc.insecure_channel(server.address) as channel,
        fails_with("INVALID_ARGUMENT", "MESSAGE_INVALID", "cannot be decoded"),
    ):
        call(channel, name, BAD)


def test_in_the_middle_of_an_upload(admin: Person, data: bytes) -> None:
    first = model_pb2.UploadModelRequest(spec=model_pb2.ModelSpec(name="m"), chunk=data[:10]).SerializeToString()
    with fails_with("INVALID_ARGUMENT", "MESSAGE_INVALID", "a message of UploadModel cannot be decoded"):
        call(admin.channel, "/fedround.v1.ModelService/UploadModel", first, BAD, token=admin.token)


def test_in_the_middle_of_reflection(server: Server) -> None:
    answers: list[bytes] = []
    with grpc.insecure_channel(server.address) as channel:
        method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        stream = channel.stream_stream(method)(iter([b"\x3a\x01*", BAD]), timeout=TIMEOUT)
        with fails_with("INVALID_ARGUMENT", "MESSAGE_INVALID", "cannot be decoded"):
            answers.extend(stream)
    assert not answers or b"fedround.v1.UserService" in answers[0]


def test_the_log_has_one_line(server: Server, admin: Person) -> None:
    before = len(server.log)
    with fails_with("INVALID_ARGUMENT", "MESSAGE_INVALID", "cannot be decoded"):
        call(admin.channel, "/fedround.v1.UserService/GetUser", BAD, token=admin.token)
    until(lambda: "GetUser" in server.log[before:])
    lines = [line for line in server.log[before:].splitlines() if "GetUser" in line]
    assert len(lines) == 1, lines
    assert "INVALID_ARGUMENT" in lines[0]
    assert "Traceback" not in server.log[before:]


def test_a_call_without_its_message(person: Callable[..., Person]) -> None:
    newcomer = person("CLIENT")
    method = newcomer.channel.stream_unary("/fedround.v1.UserService/GetMyself")
    with fails_with("INVALID_ARGUMENT", "MESSAGE_INVALID", "takes one message, and none came"):
        method(iter([]), metadata=[("x-token", newcomer.token)], timeout=TIMEOUT)


def test_a_caller_that_is_known_and_one_that_is_not_get_the_same(person: Callable[..., Person]) -> None:
    newcomer = person("CLIENT")
    answers = [call(newcomer.channel, TRAININGS, b"", token=newcomer.token) for _ in range(3)]
    assert answers == [[b""]] * 3
    # Of a method that streams its answers, too.
    actor = person("ACTOR")
    training_id = actor.create(client_ids=[newcomer.user_id]).training_id
    actor.start(training_id)
    request = round_pb2.SubscribeRequest(training_id=training_id)
    stream = newcomer.rounds.Subscribe(request, timeout=TIMEOUT)
    assert next(stream).HasField("round_started")
    stream.cancel()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(METHODS)), data=st.binary(max_size=60), is_known=st.booleans())
def test_any_bytes(admin: Person, name: str, data: bytes, is_known: bool) -> None:
    """Nothing is answered with UNKNOWN or INTERNAL, and what protobuf cannot read is MESSAGE_INVALID."""
    decodable = is_decodable(name, data)
    if name.endswith(("/Watch", "/Subscribe", "/RotateToken")) and decodable:
        # These have no end, or take the token away.
        return
    outcome = outcome_of(admin.channel, name, data, admin.token if is_known else "")
    if not is_known and name in GUARDED:
        assert outcome == "UNAUTHENTICATED TOKEN_MISSING"
    else:
        assert decodable == (outcome != "INVALID_ARGUMENT MESSAGE_INVALID")
        assert not outcome.startswith(("UNKNOWN", "INTERNAL"))


def outcome_of(channel: grpc.Channel, name: str, data: bytes, token: str) -> str:
    """Calls a method; returns the code, and the reason if there is one."""
    try:
        call(channel, name, data, token=token)
    except grpc.RpcError as error:
        # Those of health and channelz have no details.
        return f"{error.code().name} {read_error(error).reason}" if rpc_status.from_call(error) else error.code().name
    return "OK"


def is_decodable(name: str, data: bytes) -> bool:
    try:
        GetMessageClass(METHODS[name].input_type).FromString(data)
    except DecodeError:
        return False
    return True
