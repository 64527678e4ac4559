"""Every error has one code, one reason, and details for programs."""

import base64
import re
import string
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from calls import read_error
from fedround.v1 import user_pb2, user_pb2_grpc
from fedround_server.domain import errors
from fedround_server.domain.errors import FedroundError
from fedround_server.interceptors.errors import CODES, ErrorInterceptor, code_of, to_status

FAMILIES = sorted(CODES, key=lambda kind: kind.__name__)
CLASSES = sorted(
    (
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, FedroundError) and kind not in {FedroundError, *FAMILIES}
    ),
    key=lambda kind: kind.__name__,
)
# The arguments of the constructors that make their own message.
ARGUMENTS: dict[type[FedroundError], tuple[Any, ...]] = {
    errors.TokenMissing: (),
    errors.TokenInvalid: (),
    errors.TokenExpired: (),
    errors.CertificateMismatch: (),
    errors.CertificateAmbiguous: (),
    errors.ServerLeaving: (),
    errors.FieldInvalid: ("name", "is required: 1 to 200 characters"),
    errors.UnknownClients: (["b", "a"],),
    errors.AggregationIncompatible: ("mixing", "does not go with fed_nova"),
    errors.NumExamples: (0, 10),
    errors.RoundNotFound: (3, "8b7c"),
    errors.UpdateNorm: (2.5, 1.0),
    errors.UpdateStale: (1, 5, 3),
    errors.BackupInProgress: (),
    errors.UploadOffset: (5, 3),
    errors.UploadIncomplete: (5, 9),
    errors.ChunkCorrupt: (5, 9),
    errors.ModelDamaged: ("the model", "objects/00/00", "is damaged"),
    errors.TooManyCalls: ("you call more often than 5 times per second", 2.25, "some_limit"),
    errors.AnswerTooLarge: (5, 3),
}


def make(kind: type[FedroundError]) -> FedroundError:
    return kind(*ARGUMENTS.get(kind, ("something went wrong: do this",)))


def test_reasons_are_unique_and_well_formed() -> None:
    reasons = [kind.reason for kind in CLASSES]
    assert len(reasons) > 30
    assert len(set(reasons)) == len(reasons)
    assert all(re.fullmatch(r"[A-Z]+(_[A-Z]+)*", reason) for reason in reasons)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_becomes_a_status_with_its_reason(kind: type[FedroundError]) -> None:
    error = make(kind)
    status = to_status(error)
    assert status.code == code_of(error).value[0] != grpc.StatusCode.INTERNAL.value[0]
    assert status.message == error.message == str(error)
    assert len(status.message) > 20
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == (kind.reason, "fedround", dict(error.metadata))
    # What gRPC sends must fit into its limit of metadata.
    assert len(rpc_status.to_status(status).trailing_metadata[0][1]) < 8 << 10


@pytest.mark.parametrize("kind", [*FAMILIES])
def test_every_family_is_used(kind: type[FedroundError]) -> None:
    assert any(issubclass(one, kind) for one in CLASSES)


@pytest.mark.parametrize(
    ("error", "detail", "shown"),
    [
        (errors.FieldInvalid("name", "is required"), error_details_pb2.BadRequest, ['"name"', '"is required"']),
        (errors.NumExamples(11, 10), error_details_pb2.BadRequest, ['"num_examples"', "0..10, not 11"]),
        (errors.UnknownClients(["b", "a"]), error_details_pb2.BadRequest, ['"client_ids"', "a, b"]),
        (errors.TrainingNotFound("x-1"), error_details_pb2.ResourceInfo, ['"training"', '"x-1"']),
        (errors.LastAdmin("the last one"), error_details_pb2.PreconditionFailure, ['"LAST_ADMIN"', '"the last one"']),
        (errors.Quota("too many"), error_details_pb2.QuotaFailure, ['"QUOTA"', '"too many"']),
        (errors.TooManyUploads("wait"), error_details_pb2.RetryInfo, ["seconds: 1"]),
        (errors.TooManyStreams("wait"), error_details_pb2.RetryInfo, ["seconds: 1"]),
        (errors.StoreUnavailable("wait"), error_details_pb2.RetryInfo, ["seconds: 1"]),
        (errors.DiskFull("wait"), error_details_pb2.RetryInfo, ["seconds: 10"]),
        (errors.TooManyCalls("wait", 2.25, "x"), error_details_pb2.RetryInfo, ["seconds: 2", "nanos: 250000000"]),
    ],
)
def test_details_fit_the_family(error: FedroundError, detail: Any, shown: list[str]) -> None:
    (packed,) = [one for one in to_status(error).details if one.Is(detail.DESCRIPTOR)]
    message = detail()
    packed.Unpack(message)
    for words in shown:
        assert words in str(message)


@pytest.mark.parametrize(
    "error",
    [
        errors.UnknownClients([f"123e4567-e89b-12d3-a456-{number:012d}" for number in range(10_000)]),
        errors.LastAdmin("\U0001f3e5" * 1000),
        errors.Quota("ö" * 10_000),
        errors.FieldInvalid("name", "\U0001f3e5" * 1000),
    ],
)
def test_a_long_answer_fits_into_the_metadata(error: FedroundError) -> None:
    status = rpc_status.to_status(to_status(error))
    sent = len(quote(status.details, safe=string.printable)) + len(base64.b64encode(status.trailing_metadata[0][1]))
    assert sent < 8000


class Talkative(user_pb2_grpc.UserServiceServicer):
    """Answers with as many bytes as the caller's name says."""

    async def GetUser(self, request: Any, context: Any) -> user_pb2.GetUserResponse:  # noqa: N802 - the proto's name
        return user_pb2.GetUserResponse(user=user_pb2.User(name="n" * int(request.user_id)))


async def test_an_answer_larger_than_a_message_has_a_reason() -> None:
    seen: list[Any] = []
    interceptor = ErrorInterceptor(1000, lambda *error: seen.append(error))
    server = grpc.aio.server(interceptors=(interceptor,), options=[("grpc.max_send_message_length", 1000)])
    user_pb2_grpc.add_UserServiceServicer_to_server(Talkative(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = user_pb2_grpc.UserServiceStub(channel)
            for size in (900, 990):
                assert len((await stub.GetUser(user_pb2.GetUserRequest(user_id=str(size)))).user.name) == size
            for size in (1000, 100_000):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await stub.GetUser(user_pb2.GetUserRequest(user_id=str(size)))
                details = read_error(error.value)
                assert (details.code, details.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ANSWER_TOO_LARGE")
                assert "1000" in details.message
        assert [(method, error.reason) for method, _, error in seen] == [
            ("/fedround.v1.UserService/GetUser", "ANSWER_TOO_LARGE")
        ] * 2
    finally:
        await server.stop(None)
