"""How a server starts, fails to start, and is kept private."""

import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import fedround_client as fr
import forked
from calls import Person, fails_with
from fedround.v1 import user_pb2
from fedround_server.methods import check_methods
from servers import MODULE, Server


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "0.0.0.0:0"], "TLS"),
        (["--listen", "nowhere"], "HOST:PORT"),
        (["--database", "mysql://x"], "postgresql://"),
        (["--tls-cert", "cert.pem"], "go together"),
        (["--log-format", "xml"], "log_format"),
        (["--grace-seconds", "-1"], "grace_seconds"),
    ],
)
def test_invalid_settings(tmp_path: Path, arguments: list[str], words: str) -> None:
    ended = forked.run("--data-dir", tmp_path / "data", *arguments)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "data").exists()


def test_a_taken_port_or_data_directory(server: Server, tmp_path: Path) -> None:
    ended = forked.run("--listen", server.address, "--data-dir", tmp_path / "data", "--log-level", "error")
    taken = f"error: cannot listen on {server.address}: if another server does, choose another address with --listen\n"
    assert (ended.returncode, ended.stderr) == (1, taken)
    ended = forked.run("--listen", "127.0.0.1:0", "--data-dir", server.data_dir)
    assert (ended.returncode, "another server" in ended.stderr) == (1, True)
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_taken_database(database: str, tmp_path: Path) -> None:
    with Server(tmp_path / "one", database=database) as server:
        ended = forked.run("--listen", "127.0.0.1:0", "--data-dir", tmp_path / "two", "--database", database)
        assert (ended.returncode, "another server uses this database" in ended.stderr) == (1, True)
        assert "Traceback" not in ended.stderr
        server.kill()
        # It refers to no files, so they may be anywhere from now on.
        with Server(tmp_path / "two", database=database):
            pass
        ended = forked.run("--listen", "127.0.0.1:0", "--data-dir", tmp_path / "one", "--database", database)
        assert (ended.returncode, "has the files of another database" in ended.stderr) == (1, True)


def test_a_method_without_a_permission_stops_the_start() -> None:
    with pytest.raises(RuntimeError, match=r"/fedround\.v1\.TrainingService/Explode"):
        check_methods(["/fedround.v1.TrainingService/GetTraining", "/fedround.v1.TrainingService/Explode"])


def test_a_second_start_keeps_the_admin(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        token = server.admin_token
    with server:
        assert server.admin_token == token
        with grpc.insecure_channel(server.address) as channel:
            me = Person(channel, token).users.GetMyself(user_pb2.GetMyselfRequest()).user
        assert (me.name, me.role) == ("admin", user_pb2.ROLE_ADMIN)


def test_a_seed_repeats_the_ids_of_users_in_any_order(tmp_path: Path) -> None:
    def create(users: Any, name: str) -> str:
        return users.CreateUser(user_pb2.CreateUserRequest(name=name, role="ROLE_CLIENT")).user.user_id

    found = []
    for name, people in (("one", ["a", "b"]), ("two", ["b", "a"])):
        with (
            Server(tmp_path / name, options=("--id-seed", "3")) as server,
            grpc.insecure_channel(server.address) as channel,
        ):
            users = Person(channel, server.admin_token).users
            ids = {one: create(users, one) for one in people}
            # A name that is used again gets another id.
            users.RemoveUser(user_pb2.RemoveUserRequest(user_id=ids["a"]))
            found.append([ids["a"], ids["b"], create(users, "a")])
    assert found[0] == found[1]
    assert len(set(found[0])) == 3


def test_a_seed_repeats_the_ids_of_a_new_data_directory_only(tmp_path: Path) -> None:
    def admin_id(server: Server) -> str:
        with grpc.insecure_channel(server.address) as channel:
            return Person(channel, server.admin_token).users.GetMyself(user_pb2.GetMyselfRequest()).user.user_id

    found = []
    for name, seed in (("one", "3"), ("two", "3"), ("three", "4")):
        with Server(tmp_path / name, options=("--id-seed", seed)) as server:
            found.append(admin_id(server))
    assert found[0] == found[1] != found[2]
    ended = forked.run("--listen", "127.0.0.1:0", "--data-dir", tmp_path / "one", "--id-seed", "3")
    assert (ended.returncode, "id_seed would repeat ids of this data directory" in ended.stderr) == (1, True)
    with Server(tmp_path / "one") as server:
        assert admin_id(server) == found[0]


def test_a_start_makes_a_token_when_no_admin_has_one(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        token = server.admin_token
        with grpc.insecure_channel(server.address) as channel:
            admin = Person(channel, token)
            me = admin.users.GetMyself(user_pb2.GetMyselfRequest()).user
            admin.users.RevokeToken(user_pb2.RevokeTokenRequest(token_id=me.tokens[0].token_id))
    with server, grpc.insecure_channel(server.address) as channel:
        assert server.admin_token != token
        again = Person(channel, server.admin_token).users.GetMyself(user_pb2.GetMyselfRequest()).user
        assert again.user_id == me.user_id


def test_a_start_makes_a_token_when_its_file_was_emptied(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        lost = server.admin_token
        (server.data_dir / "admin.token").unlink()
        server.stop()
        server.start()
        # Who keeps the token somewhere else removes the file.
        assert not (server.data_dir / "admin.token").exists()
        (server.data_dir / "admin.token").touch()
        server.stop()
        server.start()
        assert "wrote a new token of the admin to it, and revoked the others" in server.log
        with grpc.insecure_channel(server.address) as channel:
            assert Person(channel, server.admin_token).users.GetMyself(user_pb2.GetMyselfRequest()).user.name == "admin"
            with fails_with("UNAUTHENTICATED", "TOKEN_INVALID", "token"):
                Person(channel, lost).users.GetMyself(user_pb2.GetMyselfRequest())
        token = server.admin_token
        server.stop()
        server.start()
        assert server.admin_token == token


def test_a_server_may_open_as_many_files_as_its_hard_limit_says(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with Server(tmp_path / "data", program=MODULE) as server:
            assert resource.prlimit(server.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_draining_ends_health_watches_and_reflection(tmp_path: Path) -> None:
    with Server(tmp_path / "data", options=("--grace-seconds", "3600")) as server:
        with grpc.insecure_channel(server.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            known = stub.Watch(health_pb2.HealthCheckRequest(service="fedround.v1.UserService"))
            unknown = stub.Watch(health_pb2.HealthCheckRequest(service="unknown"))
            received = [next(known).status, next(unknown).status]
            assert received == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN]
            done = threading.Event()
            questions = asking(done)
            answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(questions)
            assert next(answers).HasField("list_services_response")
            assert server.stop() == 0
            assert [one.status for one in known] == [health_pb2.HealthCheckResponse.NOT_SERVING]
            assert (list(unknown), list(answers)) == ([], [])
            done.set()
        server.start()


def asking(done: threading.Event) -> Iterator[reflection_pb2.ServerReflectionRequest]:
    """Sends one request and keeps the stream open."""
    yield reflection_pb2.ServerReflectionRequest(list_services="")
    done.wait(60)


def test_tls_and_client_certificates(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, certificate in (
        ("server", authority.issue_cert("127.0.0.1", "localhost")),
        ("client", authority.issue_cert("client@example.org")),
    ):
        certificate.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(tmp_path / f"{name}.pem", append=True)
    options = ("--tls-cert", "server.pem", "--tls-key", "server.key", "--tls-client-ca", "ca.pem")
    paths = tuple(option if option.startswith("--") else str(tmp_path / option) for option in options)
    with Server(tmp_path / "data", options=paths) as server:
        ca, pem, key = tmp_path / "ca.pem", tmp_path / "client.pem", tmp_path / "client.key"
        with fr.connect(server.address, server.admin_token, tls_ca=ca, tls_cert=pem, tls_key=key) as client:
            assert client.myself().name == "admin"
        for wrong, reason in (({"tls_ca": ca}, "TLS_CLIENT_CERTIFICATE"), ({"insecure": True}, "TLS_REQUIRED")):
            with (
                fr.connect(server.address, server.admin_token, **wrong) as client,
                pytest.raises(fr.TlsFailed) as error,
            ):
                client.myself()
            assert error.value.reason == reason
