"""How tokens are replaced, expire and are revoked, and what ends with them."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from calls import TIMEOUT, Person, fails_with, kinds, model_file, new_id, read_error, until
from fedround.v1 import model_pb2, user_pb2
from servers import Server
from service.uploads import Halted, belongings, creating, storing, submitting

HOUR, DAY, YEAR = (Duration(seconds=seconds) for seconds in (3_600, 86_400, 366 * 86_400))
MOMENT = Duration(nanos=300_000_000)


def rotate(person: Person, **request: Any) -> Person:
    return Person(person.channel, person.users.RotateToken(user_pb2.RotateTokenRequest(**request)).token)


def myself(person: Person) -> user_pb2.User:
    return person.users.GetMyself(user_pb2.GetMyselfRequest()).user


def reason_of(person: Person) -> str:
    try:
        myself(person)
    except grpc.RpcError as error:
        return read_error(error).reason
    return ""


def test_two_tokens_work_during_an_overlap_and_no_third_one(actor: Person) -> None:
    second = rotate(actor, overlap=HOUR)
    assert reason_of(actor) == reason_of(second) == ""
    new, old = myself(second).tokens
    assert old.expire_time.seconds - new.create_time.seconds in (3_600, 3_601)
    assert not new.HasField("expire_time")
    assert old.HasField("last_use_time")
    third = rotate(second, overlap=HOUR)
    assert reason_of(actor) == "TOKEN_INVALID"
    assert reason_of(second) == reason_of(third) == ""
    assert [token.token_id for token in myself(third).tokens][1] == new.token_id
    # Without an overlap all others end at once.
    fourth = rotate(second)
    assert reason_of(second) == reason_of(third) == "TOKEN_INVALID"
    assert len(myself(fourth).tokens) == 1


def test_a_token_ends_with_the_overlap(actor: Person) -> None:
    second = rotate(actor, overlap=MOMENT)
    until(lambda: reason_of(actor) == "TOKEN_EXPIRED")
    with fails_with("UNAUTHENTICATED", "TOKEN_EXPIRED", "ask an admin for a new one"):
        myself(actor)
    assert len(myself(second).tokens) == 1


def test_a_token_has_a_lifetime(admin: Person, server: Server) -> None:
    made = admin.users.CreateUser(user_pb2.CreateUserRequest(name=new_id(), role="ROLE_ACTOR", lifetime=DAY))
    (token,) = made.user.tokens
    assert token.expire_time.seconds - token.create_time.seconds in (86_400, 86_401)
    with grpc.insecure_channel(server.address) as channel:
        short = rotate(Person(channel, made.token), lifetime=MOMENT)
        stream = short.subscribe()
        with fails_with("UNAUTHENTICATED", "TOKEN_EXPIRED", "ask an admin for a new one"):
            next(stream)
        assert reason_of(short) == "TOKEN_EXPIRED"


def test_a_token_is_revoked_by_its_id(admin: Person, actor: Person, clients: list[Person]) -> None:
    second = rotate(actor, overlap=HOUR)
    new, old = myself(second).tokens
    with fails_with("PERMISSION_DENIED", "ROLE_REQUIRED", "leave user_id empty for your own"):
        clients[0].users.RevokeToken(user_pb2.RevokeTokenRequest(user_id=actor.user_id, token_id=old.token_id))
    with fails_with("NOT_FOUND", "TOKEN_NOT_FOUND", "check the id"):
        clients[0].users.RevokeToken(user_pb2.RevokeTokenRequest(token_id=old.token_id))
    second.users.RevokeToken(user_pb2.RevokeTokenRequest(token_id=old.token_id.upper()))
    assert (reason_of(actor), reason_of(second)) == ("TOKEN_INVALID", "")
    admin.users.RevokeToken(user_pb2.RevokeTokenRequest(user_id=actor.user_id, token_id=new.token_id))
    assert reason_of(second) == "TOKEN_INVALID"
    assert not admin.users.GetUser(user_pb2.GetUserRequest(user_id=actor.user_id)).user.tokens


def test_tokens_are_shown_to_their_user_and_to_admins(admin: Person, actor: Person, clients: list[Person]) -> None:
    asked = user_pb2.GetUserRequest(user_id=clients[0].user_id)
    (own,) = clients[0].users.GetUser(asked).user.tokens
    (shown,) = admin.users.GetUser(asked).user.tokens
    assert own.token_id == shown.token_id
    assert not actor.users.GetUser(asked).user.tokens
    for person in (actor, admin):
        listed = person.users.GetUsers(user_pb2.GetUsersRequest(page_size=1000)).users
        assert not any(user.tokens or user.certificate_names for user in listed)


@pytest.mark.parametrize(
    ("method", "wrong", "field"),
    [
        ("CreateUser", {"lifetime": {}}, "lifetime"),
        ("CreateUser", {"lifetime": {"seconds": 4_000_000_000}}, "lifetime"),
        ("CreateUser", {"certificate_names": [""]}, "certificate_names"),
        ("CreateUser", {"certificate_names": ["a b"]}, "certificate_names"),
        ("CreateUser", {"certificate_names": ["a" * 251]}, "certificate_names"),
        ("CreateUser", {"certificate_names": [str(number) for number in range(21)]}, "certificate_names"),
        ("RotateToken", {"overlap": {"seconds": -1}}, "overlap"),
        ("RotateToken", {"overlap": YEAR}, "overlap"),
        ("RotateToken", {"lifetime": {"seconds": 1 << 62}}, "lifetime"),
        ("RevokeToken", {}, "token_id"),
        ("RevokeToken", {"token_id": "fr_the-token-itself"}, "token_id"),
        ("SetCertificateNames", {"user_id": new_id(), "certificate_names": [" "]}, "certificate_names"),
    ],
)
def test_requests_that_make_no_sense(admin: Person, method: str, wrong: dict[str, Any], field: str) -> None:
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", f"{field}: ") as error:
        needed = {"name": "n", "role": user_pb2.ROLE_CLIENT} if method == "CreateUser" else {}
        getattr(admin.users, method)(getattr(user_pb2, f"{method}Request")(**needed, **wrong))
    assert list(error.details.fields) == [field]
    assert "the-token-itself" not in error.details.message


def rotated(admin: Person, person: Person) -> None:
    admin.users.RotateToken(user_pb2.RotateTokenRequest(user_id=person.user_id))


def revoked(admin: Person, person: Person) -> None:
    (token,) = admin.users.GetUser(user_pb2.GetUserRequest(user_id=person.user_id)).user.tokens
    admin.users.RevokeToken(user_pb2.RevokeTokenRequest(user_id=person.user_id, token_id=token.token_id))


def removed(admin: Person, person: Person) -> None:
    admin.users.RemoveUser(user_pb2.RemoveUserRequest(user_id=person.user_id, force=True))


@pytest.fixture
def stalled(server: Server, person: Callable[..., Person]) -> Iterator[tuple[Person, Any]]:
    """A download that waits for its reader, who takes little at a time; nothing but the user's token ends it."""
    reader = person("ACTOR")
    upload, data = storing(reader), model_file(filler=np.zeros(2_900_000, np.uint8))
    model = upload.send(upload.spec(data), *upload.chunks(data)).model
    narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16)]
    with grpc.insecure_channel(server.address, options=narrow) as channel:
        request = model_pb2.DownloadModelRequest(model_id=model.model_id)
        stream = Person(channel, reader.token).models.DownloadModel(request, timeout=TIMEOUT)
        assert next(stream).info.model_id == model.model_id
        yield reader, stream


@pytest.mark.parametrize("end", [rotated, revoked, removed])
def test_all_calls_end_with_their_token(
    server: Server, admin: Person, actor: Person, stalled: tuple[Person, Any], end: Callable[[Person, Person], None]
) -> None:
    reader, download = stalled
    before, data = belongings(reader), model_file(3)
    events = reader.subscribe()
    spectator = actor.subscribe()
    with Halted(server, creating(reader), data) as first, Halted(server, storing(reader), data) as second:
        end(admin, reader)
        for ended in (first.call.result, second.call.result, lambda: next(events), lambda: list(download)):
            with fails_with("UNAUTHENTICATED", "TOKEN_INVALID"):
                ended()
    until(lambda: not list((server.data_dir / "tmp").iterdir()))
    if end is not removed:
        token = admin.users.RotateToken(user_pb2.RotateTokenRequest(user_id=reader.user_id)).token
        assert belongings(Person(reader.channel, token)) == before
    assert spectator.stream.is_active()
    spectator.cancel()


def test_an_update_that_was_acknowledged_stays(admin: Person, actor: Person, clients: list[Person]) -> None:
    upload, data = submitting(actor, clients[0], model_file()), model_file(1)
    receipt = upload.send(upload.spec(data), *upload.chunks(data)).receipt
    new = rotate(clients[0])
    assert actor.get(receipt.training_id).updates_arrived == 1
    # Whoever lost the answer gets it again.
    assert upload.through(new).send(upload.spec(data)).receipt == receipt
    log = actor.subscribe(receipt.training_id, resume_after_sequence={receipt.training_id: 0})
    assert kinds(log.next(3))[-1] == "update_accepted"
    log.cancel()
