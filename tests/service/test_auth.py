"""Who may call what."""

import base64
import stat
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from calls import Person, new_id, read_refusal, refused
from fedround.v1 import model_pb2, round_pb2, training_pb2, user_pb2
from fedround_server.interceptors.auth import ANYBODY, PERMISSIONS
from servers import Server

METHODS = [
    (service, method)
    for file in (user_pb2, training_pb2, round_pb2, model_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def call(channel: grpc.Channel, service: Any, method: Any, metadata: list[tuple[str, str]]) -> grpc.RpcError | None:
    """Calls a method with an empty request, or an empty stream; returns how it was refused."""
    path = f"/{service.full_name}/{method.name}"
    options = {"request_serializer": lambda data: data, "response_deserializer": lambda data: data}
    try:
        if method.client_streaming:
            channel.stream_unary(path, **options)(iter([]), metadata=metadata, timeout=10)
        elif method.server_streaming:
            next(channel.unary_stream(path, **options)(b"", metadata=metadata, timeout=10))
        else:
            channel.unary_unary(path, **options)(b"", metadata=metadata, timeout=10)
    except grpc.RpcError as error:
        return error
    return None


@pytest.mark.parametrize(("service", "method"), METHODS, ids=lambda one: one.name)
class TestEveryMethod:
    @pytest.mark.parametrize(
        ("metadata", "reason"),
        [
            ([], "TOKEN_MISSING"),
            ([("authorization", "Bearer wrong")], "TOKEN_INVALID"),
            ([("authorization", "Basic d3Jvbmc=")], "TOKEN_INVALID"),
            ([("authorization", "Bearer")], "TOKEN_INVALID"),
            ([("x-token", "wrong")], "TOKEN_INVALID"),
        ],
    )
    def test_without_a_good_token(self, admin: Person, service: Any, method: Any, metadata: Any, reason: str) -> None:
        error = call(admin.channel, service, method, metadata)
        assert error is not None
        found = read_refusal(error)
        assert (found.code, found.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)
        assert "token" in found.message

    @pytest.mark.parametrize("role", ["CLIENT", "ACTOR", "ADMIN"])
    def test_by_role(self, person: Callable[..., Person], service: Any, method: Any, role: str) -> None:
        caller = person(role)
        error = call(caller.channel, service, method, [("x-token", caller.token)])
        refused_for_role = error is not None and read_refusal(error).reason == "ROLE_REQUIRED"
        allowed = PERMISSIONS[f"/{service.full_name}/{method.name}"]
        assert allowed is not ANYBODY
        assert refused_for_role == (role not in {one.value for one in allowed})


def test_both_ways_to_send_a_token(actor: Person) -> None:
    stub = actor.channel.unary_unary(
        "/fedround.v1.UserService/GetMyself",
        request_serializer=user_pb2.GetMyselfRequest.SerializeToString,
        response_deserializer=user_pb2.GetMyselfResponse.FromString,
    )
    for metadata in ([("x-token", actor.token)], [("authorization", f"bearer {actor.token}")]):
        assert stub(user_pb2.GetMyselfRequest(), metadata=metadata).user.user_id == actor.user_id


def test_the_first_admin_has_a_private_file_and_no_token_is_logged(server: Server, actor: Person) -> None:
    path = server.data_dir / "admin.token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    actor.create()
    for token in (actor.token, server.admin_token):
        assert token not in server.log
        database = (server.data_dir / "fedround.db").read_bytes()
        assert token.encode() not in database + (server.data_dir / "fedround.db-wal").read_bytes()


class TestUsers:
    def test_a_rotated_token_is_dead(self, admin: Person, actor: Person, clients: list[Person]) -> None:
        new = actor.users.RotateToken(user_pb2.RotateTokenRequest()).token
        with refused("UNAUTHENTICATED", "TOKEN_INVALID"):
            actor.users.GetMyself(user_pb2.GetMyselfRequest())
        again = Person(actor.channel, new)
        assert again.users.GetMyself(user_pb2.GetMyselfRequest()).user.user_id == actor.user_id
        with refused("PERMISSION_DENIED", "ROLE_REQUIRED"):
            clients[0].users.RotateToken(user_pb2.RotateTokenRequest(user_id=actor.user_id))
        admin.users.RotateToken(user_pb2.RotateTokenRequest(user_id=actor.user_id))
        with refused("UNAUTHENTICATED", "TOKEN_INVALID"):
            again.users.GetMyself(user_pb2.GetMyselfRequest())

    def test_a_removed_user_is_gone(self, admin: Person, actor: Person, clients: list[Person]) -> None:
        made = actor.create(client_ids=[client.user_id for client in clients])
        name = clients[0].users.GetMyself(user_pb2.GetMyselfRequest()).user.name
        admin.users.RemoveUser(user_pb2.RemoveUserRequest(user_id=clients[0].user_id))
        with refused("UNAUTHENTICATED", "TOKEN_INVALID"):
            clients[0].users.GetMyself(user_pb2.GetMyselfRequest())
        with refused("NOT_FOUND", "USER_NOT_FOUND"):
            actor.users.GetUser(user_pb2.GetUserRequest(user_id=clients[0].user_id))
        assert clients[0].user_id not in actor.get(made.training_id).participant_ids
        assert admin.users.CreateUser(user_pb2.CreateUserRequest(name=name, role="ROLE_CLIENT")).user.name == name

    def test_names_are_taken_once(self, admin: Person) -> None:
        name = new_id()
        admin.users.CreateUser(user_pb2.CreateUserRequest(name=name, role="ROLE_CLIENT"))
        with refused("ALREADY_EXISTS", "USER_EXISTS", name):
            admin.users.CreateUser(user_pb2.CreateUserRequest(name=name, role="ROLE_ACTOR"))

    @pytest.mark.parametrize(
        ("request_", "field"),
        [
            (user_pb2.CreateUserRequest(role="ROLE_CLIENT"), "name"),
            (user_pb2.CreateUserRequest(name=" ", role="ROLE_CLIENT"), "name"),
            (user_pb2.CreateUserRequest(name="n" * 201, role="ROLE_CLIENT"), "name"),
            (user_pb2.CreateUserRequest(name="nul\0", role="ROLE_CLIENT"), "name"),
            (user_pb2.CreateUserRequest(name="n"), "role"),
            (user_pb2.CreateUserRequest(name="n", role=9), "role"),
        ],
    )
    def test_a_user_that_makes_no_sense(self, admin: Person, request_: Any, field: str) -> None:
        with refused("INVALID_ARGUMENT", "FIELD_INVALID", field) as error:
            admin.users.CreateUser(request_)
        assert list(error.refusal.fields) == [field]

    def test_clients_see_themselves_only(self, actor: Person, clients: list[Person]) -> None:
        me = clients[0].users.GetUser(user_pb2.GetUserRequest(user_id=clients[0].user_id)).user
        assert (me.user_id, me.role) == (clients[0].user_id, user_pb2.ROLE_CLIENT)
        for user_id in (actor.user_id, clients[1].user_id, new_id()):
            with refused("NOT_FOUND", "USER_NOT_FOUND"):
                clients[0].users.GetUser(user_pb2.GetUserRequest(user_id=user_id))

    def test_lists_by_role_and_page(self, actor: Person, clients: list[Person]) -> None:
        found: list[str] = []
        token = ""
        while True:
            request = user_pb2.GetUsersRequest(page_size=3, page_token=token, role="ROLE_CLIENT")
            page = actor.users.GetUsers(request)
            assert len(page.users) <= 3
            found += [user.user_id for user in page.users]
            token = page.next_page_token
            if not token:
                break
        assert len(found) == len(set(found))
        assert {client.user_id for client in clients} <= set(found)
        assert actor.user_id not in found

    @pytest.mark.parametrize("position", [b'["\\u0000"]', b'["\\ud800"]', b"[1]", b'["a", "b"]'])
    def test_a_token_that_no_listing_made(self, actor: Person, position: bytes) -> None:
        token = base64.urlsafe_b64encode(position).decode()
        with refused("INVALID_ARGUMENT", "FIELD_INVALID", "page_token"):
            actor.users.GetUsers(user_pb2.GetUsersRequest(page_token=token))

    def test_the_last_admin_stays(self, admin: Person) -> None:
        page = admin.users.GetUsers(user_pb2.GetUsersRequest(role="ROLE_ADMIN", page_size=1000))
        me = admin.users.GetMyself(user_pb2.GetMyselfRequest()).user.user_id
        for user in page.users:
            if user.user_id != me:
                admin.users.RemoveUser(user_pb2.RemoveUserRequest(user_id=user.user_id))
        with refused("FAILED_PRECONDITION", "LAST_ADMIN"):
            admin.users.RemoveUser(user_pb2.RemoveUserRequest(user_id=me))
