"""Tokens stay secret: wherever one is put, it turns up nowhere but in admin.token, and where it is stored as a name."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from calls import TIMEOUT, Person, fails_with, kinds, model_file
from fedround.v1 import user_pb2
from fedround_server.domain.token import TOKEN_PREFIX, new_token
from fedround_server.grpc_server import SERVICES
from servers import MODULE, Server, descendants

METHODS = {f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
MOMENT = {"nanos": 1000}


@dataclass
class Canaries:
    """A server that was shown tokens of every kind in every place, and what it said."""

    server: Server
    tokens: dict[str, str]
    stored: str
    received: list[str]

    def found_in(self, content: bytes) -> list[str]:
        """Which tokens stand in the clear somewhere."""
        return [kind for kind, token in self.tokens.items() if token.encode() in content]


@pytest.fixture(scope="module", params=["console", "json"])
def canaries(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canaries]:
    options = ("--log-level", "debug", "--log-format", request.param)
    with (
        Server(tmp_path_factory.mktemp("canaries") / "data", options=options, program=MODULE) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        admin = Person(channel, server.admin_token)
        actor, client = (admin.make(server.address, role) for role in ("ACTOR", "CLIENT"))
        tokens = {"admin": admin.token, "actor": actor.token, "client": client.token, "unknown": new_token()}
        other = admin.make(server.address, "ACTOR")
        rotated = other.users.RotateToken(user_pb2.RotateTokenRequest(lifetime=MOMENT))
        tokens |= {"revoked": other.token, "expired": rotated.token}
        other.channel.close()
        found = Canaries(server, tokens, new_token(), [])
        train(actor, client)
        for token in tokens.values():
            found.received += misplace(channel, token, admin.token)
        name = user_pb2.CreateUserRequest(name=found.stored, role="ROLE_CLIENT")
        assert admin.users.CreateUser(name).user.name == found.stored
        with fails_with("ALREADY_EXISTS", "USER_EXISTS", "there is a user called 'fr_...'"):
            admin.users.CreateUser(name)
        yield found
        for person in (actor, client):
            person.channel.close()


def train(actor: Person, client: Person) -> None:
    """A small training, to its end."""
    made = actor.create(client_ids=[client.user_id])
    events = client.subscribe(made.training_id)
    actor.start(made.training_id)
    client.submit(made.training_id, model_file(1))
    assert kinds(list(events))[-1] == "training_finished"


def misplace(channel: grpc.Channel, token: str, good: str) -> Iterator[str]:
    """Shows a token in every place where one may be put, and yields what the server says to that."""
    places = [
        [("authorization", f"Bearer {token}")],
        [("authorization", token)],
        [("authorization", f"Basic {token}")],
        [("authorization", f"Bearer  {token} {token}")],
        [("x-token", token)],
        [("x-token", f"Bearer {token}")],
        [("token", token)],
        [("cookie", f"token={token}"), ("x-token-bin", token.encode())],
    ]
    for metadata in places:
        yield from say(channel, "/fedround.v1.UserService/GetMyself", b"", metadata)
    for method, described in METHODS.items():
        filled = full_of(token, described.input_type).SerializeToString()
        yield from say(channel, method, filled, [("x-token", good)])
    yield from say(channel, f"/fedround.v1.UserService/{token}", b"", [("x-token", good)])


def full_of(token: str, descriptor: Descriptor, depth: int = 0) -> Any:
    """A message with the token in each field that takes text or bytes."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        target = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["key"].type == FieldDescriptor.TYPE_STRING:
                target[token]
        elif field.type == FieldDescriptor.TYPE_MESSAGE and depth < 3:
            inner = full_of(token, field.message_type, depth + 1)
            target.append(inner) if field.is_repeated else target.CopyFrom(inner)
        elif field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            value = token if field.type == FieldDescriptor.TYPE_STRING else token.encode()
            target.append(value) if field.is_repeated else setattr(message, field.name, value)
    return message


def say(channel: grpc.Channel, method: str, request: bytes, metadata: list[Any]) -> Iterator[str]:
    """Calls, and yields the status with all its details; an answer is the caller's own."""
    described = METHODS.get(method)
    streams = (False, False) if described is None else (described.client_streaming, described.server_streaming)
    stub = getattr(channel, "_".join("stream" if one else "unary" for one in streams))(method, bytes, bytes)
    try:
        call = stub(iter([request]) if streams[0] else request, metadata=metadata, timeout=TIMEOUT)
        if streams[1]:
            next(call, None)
            call.cancel()
    except grpc.RpcError as error:
        yield f"{error.details()} {error.trailing_metadata()} {error.initial_metadata()}"


def test_every_kind_was_shown_everywhere(canaries: Canaries) -> None:
    assert len(canaries.tokens) == 6
    assert all(token.startswith(TOKEN_PREFIX) for token in canaries.tokens.values())
    # Most calls with nonsense in each field are rejected, and some of the errors repeat it.
    assert len(canaries.received) > 6 * 30
    assert any("fr_..." in text for text in canaries.received)


def test_no_token_is_revealed(canaries: Canaries) -> None:
    assert [text for text in canaries.received if canaries.found_in(text.encode())] == []


def test_no_token_is_logged(canaries: Canaries) -> None:
    log = canaries.server.log
    # What the store executes is logged, with names.
    assert "INSERT INTO" in log
    assert "fr_..." in log
    assert canaries.found_in(log.encode()) == []
    assert canaries.stored not in log


def test_no_token_is_on_disk(canaries: Canaries) -> None:
    files = {path: path.read_bytes() for path in canaries.server.data_dir.rglob("*") if path.is_file()}
    assert {"fedround.db", "admin.token"} <= {path.name for path in files}
    found = {path.name: kinds for path, content in files.items() if (kinds := canaries.found_in(content))}
    assert found == {"admin.token": ["admin"]}
    # What a user calls a user is the user's name.
    assert any(canaries.stored.encode() in content for content in files.values())


def test_no_token_is_in_a_process(canaries: Canaries) -> None:
    processes = [canaries.server.pid, *descendants(canaries.server.pid)]
    assert len(processes) > 1
    for process in processes:
        for name in ("cmdline", "environ"):
            content = Path(f"/proc/{process}/{name}").read_bytes()
            assert content
            assert canaries.found_in(content) == []
