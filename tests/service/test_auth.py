"""Who may call what."""

import base64
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from calls import TIMEOUT, Person, fails_with, kinds, model_file, new_id, read_error
from fedround.v1 import training_pb2, user_pb2
from servers import Server

ADMIN, ACTORS, CLIENTS, UNAUTHENTICATED = {"ADMIN"}, {"ADMIN", "ACTOR"}, {"ADMIN", "ACTOR", "CLIENT"}, None
READERS, USERS = ACTORS | {"VIEWER"}, CLIENTS | {"VIEWER"}
OPERATORS = {"ADMIN", "VIEWER"}
# Independent of the server's own table, so that a change of a permission has to be made twice.
TABLE: dict[str, dict[str, set[str] | None]] = {
    "fedround.v1.UserService": {
        "CreateUser": ADMIN,
        "CreateUsers": ADMIN,
        "GetUser": USERS,
        "GetUsers": ACTORS,
        "GetMyself": USERS,
        "RotateToken": USERS,
        "RevokeToken": USERS,
        "SetCertificateNames": ADMIN,
        "UpdateUser": ADMIN,
        "RemoveUser": ADMIN,
    },
    "fedround.v1.TrainingService": {
        "CreateTraining": ACTORS,
        "GetTraining": USERS,
        "GetTrainings": USERS,
        "RegisterClients": CLIENTS,
        "RemoveClients": CLIENTS,
        "RemoveTraining": CLIENTS,
        "StartTraining": CLIENTS,
    },
    "fedround.v1.ControlService": {
        "StopTraining": CLIENTS,
        "PauseTraining": CLIENTS,
        "ResumeTraining": CLIENTS,
        "UpdateConfig": CLIENTS,
    },
    "fedround.v1.RoundService": {
        "Subscribe": USERS,
        "CheckIn": CLIENTS,
        "SubmitUpdate": CLIENTS,
        "GetUpload": CLIENTS,
        "SubmitMetrics": CLIENTS,
        "ReportFailure": CLIENTS,
        "GetRound": USERS,
        "GetRounds": USERS,
        "DownloadAssignedModel": CLIENTS,
        "DownloadControl": CLIENTS,
    },
    "fedround.v1.ModelService": {
        "UploadModel": ACTORS,
        "GetModel": USERS,
        "GetModels": CLIENTS,
        "GetModelVersions": USERS,
        "TagModelVersion": ACTORS,
        "DownloadModel": CLIENTS,
        "RemoveModel": ACTORS,
        "GetMetrics": USERS,
    },
    "fedround.v1.InferenceService": {"Predict": CLIENTS},
    "fedround.v1.AuditService": {
        "ReadAudit": ADMIN,
        "GetAuditHead": ADMIN,
        "GetContributions": READERS,
        "ReplayRound": ACTORS,
        "ReplayTraining": ACTORS,
    },
    "fedround.v1.ServerService": {"GetServerStatus": OPERATORS, "CollectFiles": ADMIN},
    "grpc.health.v1.Health": {"Check": UNAUTHENTICATED, "List": UNAUTHENTICATED, "Watch": UNAUTHENTICATED},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": UNAUTHENTICATED},
    "grpc.channelz.v1.Channelz": {
        "GetTopChannels": ADMIN,
        "GetServers": ADMIN,
        "GetServer": ADMIN,
        "GetServerSockets": ADMIN,
        "GetChannel": ADMIN,
        "GetSubchannel": ADMIN,
        "GetSocket": ADMIN,
    },
}
METHODS = {f"/{service}/{name}": roles for service, methods in TABLE.items() for name, roles in methods.items()}
BEHIND_A_TOKEN = [method for method, roles in METHODS.items() if roles is not UNAUTHENTICATED]
# A server that lacks one permission.
INCOMPLETE = """
import sys
from fedround_server.__main__ import main
from fedround_server.methods import METHODS
del METHODS[sys.argv[1]]
sys.exit(main(["--listen", "127.0.0.1:0", "--data-dir", sys.argv[2]]))
"""


def served(channel: grpc.Channel) -> Iterator[Any]:
    """The methods that the server says it has."""
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    for service in database.get_services():
        yield from pool.FindServiceByName(service).methods


@pytest.fixture(scope="session")
def shapes(admin: Person) -> dict[str, str]:
    """What each method takes and gives: unary or stream."""
    return {
        f"/{method.containing_service.full_name}/{method.name}": "_".join(
            "stream" if streams else "unary" for streams in (method.client_streaming, method.server_streaming)
        )
        for method in served(admin.channel)
    }


def call(channel: grpc.Channel, shape: str, method: str, *metadata: tuple[str, str], request: bytes = b"") -> None:
    """Calls a method with a request, or with an empty stream of them."""
    stub = getattr(channel, shape)(method, request_serializer=bytes, response_deserializer=bytes)
    answer = stub(iter([]) if shape.startswith("stream") else request, metadata=metadata, timeout=TIMEOUT)
    if shape.endswith("stream"):
        next(answer, None)
        answer.cancel()


def test_every_method_has_a_permission(shapes: dict[str, str]) -> None:
    assert shapes.keys() == METHODS.keys()


@pytest.mark.parametrize("method", BEHIND_A_TOKEN)
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
def test_without_a_good_token(
    admin: Person, shapes: dict[str, str], method: str, metadata: list[tuple[str, str]], reason: str
) -> None:
    with fails_with("UNAUTHENTICATED", reason, "token"):
        call(admin.channel, shapes[method], method, *metadata)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("role", ["CLIENT", "ACTOR", "ADMIN", "VIEWER"])
def test_by_role(person: Callable[..., Person], shapes: dict[str, str], method: str, role: str) -> None:
    caller, reason = person(role), ""
    try:
        # What begins with an id has a malformed one: nothing is done, and no subscription waits.
        call(caller.channel, shapes[method], method, ("x-token", caller.token), request=b"\n\x01x")
    except grpc.RpcError as error:
        # Errors of gRPC's own services have no details.
        reason = read_error(error).reason if rpc_status.from_call(error) else error.code().name
    roles = METHODS[method]
    assert (reason == "ROLE_REQUIRED") == (roles is not UNAUTHENTICATED and role not in roles), reason


@pytest.mark.parametrize("method", sorted(METHODS.keys() - set(BEHIND_A_TOKEN)))
def test_what_needs_no_token(admin: Person, shapes: dict[str, str], method: str) -> None:
    call(admin.channel, shapes[method], method)


@pytest.mark.parametrize("method", ["/fedround.v1.TrainingService/StartTraining", "/grpc.health.v1.Health/Watch"])
def test_a_server_does_not_start_with_a_method_without_a_permission(tmp_path: Path, method: str) -> None:
    command = [sys.executable, "-c", INCOMPLETE, method, str(tmp_path / "data")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: it is not defined who may call {method}: ")
    assert not (tmp_path / "data").exists()


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
    def test_a_rotated_token_is_invalid(self, admin: Person, actor: Person, clients: list[Person]) -> None:
        new = actor.users.RotateToken(user_pb2.RotateTokenRequest()).token
        with fails_with("UNAUTHENTICATED", "TOKEN_INVALID"):
            actor.users.GetMyself(user_pb2.GetMyselfRequest())
        again = Person(actor.channel, new)
        assert again.users.GetMyself(user_pb2.GetMyselfRequest()).user.user_id == actor.user_id
        with fails_with("PERMISSION_DENIED", "ROLE_REQUIRED", "leave user_id empty for your own"):
            clients[0].users.RotateToken(user_pb2.RotateTokenRequest(user_id=actor.user_id))
        admin.users.RotateToken(user_pb2.RotateTokenRequest(user_id=actor.user_id))
        with fails_with("UNAUTHENTICATED", "TOKEN_INVALID"):
            again.users.GetMyself(user_pb2.GetMyselfRequest())

    def test_a_removed_user_is_gone(self, admin: Person, actor: Person, clients: list[Person]) -> None:
        made = actor.create(client_ids=[client.user_id for client in clients])
        name = clients[0].users.GetMyself(user_pb2.GetMyselfRequest()).user.name
        admin.users.RemoveUser(user_pb2.RemoveUserRequest(user_id=clients[0].user_id))
        with fails_with("UNAUTHENTICATED", "TOKEN_INVALID"):
            clients[0].users.GetMyself(user_pb2.GetMyselfRequest())
        with fails_with("NOT_FOUND", "USER_NOT_FOUND"):
            actor.users.GetUser(user_pb2.GetUserRequest(user_id=clients[0].user_id))
        assert clients[0].user_id not in actor.get(made.training_id).participant_ids
        assert admin.users.CreateUser(user_pb2.CreateUserRequest(name=name, role="ROLE_CLIENT")).user.name == name

    def test_the_actor_of_a_running_training_is_removed_with_force_only(
        self, admin: Person, actor: Person, clients: list[Person]
    ) -> None:
        made = actor.create(client_ids=[clients[0].user_id])
        actor.start(made.training_id)
        events = clients[0].subscribe(made.training_id)
        before = actor.get(made.training_id)
        with fails_with("FAILED_PRECONDITION", "TRAINING_RUNNING", "1 running", "force"):
            admin.users.RemoveUser(user_pb2.RemoveUserRequest(user_id=actor.user_id))
        assert actor.get(made.training_id) == before
        admin.users.RemoveUser(user_pb2.RemoveUserRequest(user_id=actor.user_id, force=True))
        assert kinds(list(events))[-1] == "training_removed"
        with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND"):
            clients[0].get(made.training_id)

    def test_an_upload_under_way_creates_nothing_for_a_removed_actor(
        self, server: Server, admin: Person, actor: Person, clients: list[Person]
    ) -> None:
        data = model_file()
        spec = training_pb2.TrainingSpec(target_num_updates=1, client_ids=[clients[0].user_id])

        def upload() -> Iterator[training_pb2.CreateTrainingRequest]:
            yield training_pb2.CreateTrainingRequest(spec=spec, chunk=data[:100])
            while not any(path.stat().st_size == 100 for path in server.data_dir.glob("tmp/*")):
                pass
            admin.users.RemoveUser(user_pb2.RemoveUserRequest(user_id=actor.user_id))
            yield training_pb2.CreateTrainingRequest(chunk=data[100:])

        with fails_with("UNAUTHENTICATED", "TOKEN_INVALID"):
            actor.trainings.CreateTraining(upload(), timeout=TIMEOUT)
        asked = training_pb2.GetTrainingsRequest(role="TRAINING_ROLE_CLIENT")
        assert not clients[0].trainings.GetTrainings(asked).trainings

    def test_names_are_taken_once(self, admin: Person) -> None:
        name = new_id()
        admin.users.CreateUser(user_pb2.CreateUserRequest(name=name, role="ROLE_CLIENT"))
        with fails_with("ALREADY_EXISTS", "USER_EXISTS", name):
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
    def test_an_invalid_user(self, admin: Person, request_: Any, field: str) -> None:
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", field) as error:
            admin.users.CreateUser(request_)
        assert list(error.details.fields) == [field]

    def test_clients_see_themselves_only(self, actor: Person, clients: list[Person]) -> None:
        me = clients[0].users.GetUser(user_pb2.GetUserRequest(user_id=clients[0].user_id)).user
        assert (me.user_id, me.role) == (clients[0].user_id, user_pb2.ROLE_CLIENT)
        for user_id in (actor.user_id, clients[1].user_id, new_id()):
            with fails_with("NOT_FOUND", "USER_NOT_FOUND"):
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
    def test_a_page_token_of_no_list(self, actor: Person, position: bytes) -> None:
        token = base64.urlsafe_b64encode(position).decode()
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "page_token"):
            actor.users.GetUsers(user_pb2.GetUsersRequest(page_token=token))

    def test_the_last_admin_stays(self, admin: Person) -> None:
        page = admin.users.GetUsers(user_pb2.GetUsersRequest(role="ROLE_ADMIN", page_size=1000))
        me = admin.users.GetMyself(user_pb2.GetMyselfRequest()).user.user_id
        for user in page.users:
            if user.user_id != me:
                admin.users.RemoveUser(user_pb2.RemoveUserRequest(user_id=user.user_id))
        with fails_with("FAILED_PRECONDITION", "LAST_ADMIN"):
            admin.users.RemoveUser(user_pb2.RemoveUserRequest(user_id=me))
