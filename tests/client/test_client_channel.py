"""The channel with a real port: tokens, repeated calls, encryption."""

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from fedround.v1 import inference_pb2_grpc, model_pb2_grpc, user_pb2_grpc
from fedround.v1.inference_pb2 import PredictResponse, Tensor
from fedround.v1.model_pb2 import GetModelVersionsResponse, ModelVersion, TagModelVersionResponse
from fedround.v1.user_pb2 import CreateUserResponse, GetMyselfResponse, GetUsersResponse, User
from fedround_client import Client, ServerUnavailable, TokenInvalid, connect
from fedround_client.channel import is_loopback, open_channel

pytestmark = pytest.mark.timeout(30)


class Services(
    user_pb2_grpc.UserServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
    inference_pb2_grpc.InferenceServiceServicer,
):
    def __init__(self):
        self.calls = []
        self.failures = 0

    def answer(self, request, context, response):
        self.calls.append((request, dict(context.invocation_metadata())))
        if len(self.calls) <= self.failures:
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        return response

    def GetMyself(self, request, context):  # noqa: N802
        return self.answer(request, context, GetMyselfResponse(user=User(name="me")))

    def CreateUser(self, request, context):  # noqa: N802
        return self.answer(request, context, CreateUserResponse())

    def GetUsers(self, request, context):  # noqa: N802
        page = int(request.page_token or 0)
        users = [User(name=f"{page}-{number}") for number in range(2)]
        return self.answer(request, context, GetUsersResponse(users=users, next_page_token="1" if page == 0 else ""))

    def GetModelVersions(self, request, context):  # noqa: N802
        return self.answer(request, context, GetModelVersionsResponse(versions=[ModelVersion(version=3)]))

    def TagModelVersion(self, request, context):  # noqa: N802
        return self.answer(request, context, TagModelVersionResponse(version=ModelVersion(version=3)))

    def Predict(self, request, context):  # noqa: N802
        mean = Tensor(dtype="F32", shape=[1], data=np.float32([3]).tobytes())
        return self.answer(request, context, PredictResponse(mean=mean))


@pytest.fixture
def users():
    return Services()


@pytest.fixture
def address(users):
    server = grpc.server(ThreadPoolExecutor(2))
    user_pb2_grpc.add_UserServiceServicer_to_server(users, server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(users, server)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(users, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_the_token_is_read_from_the_environment_and_sent_with_each_call(users, address, monkeypatch):
    monkeypatch.setenv("FEDROUND_SERVER", address)
    monkeypatch.setenv("FEDROUND_TOKEN", "from-the-environment")
    with connect() as client:
        assert client.myself().name == "me"
    with connect(token="given") as client:
        client.myself()
    tokens = [metadata["authorization"] for _, metadata in users.calls]
    assert tokens == ["Bearer from-the-environment", "Bearer given"]


def test_without_a_token_none_is_sent(users, address):
    with connect(address) as client:
        client.myself()
    assert "authorization" not in users.calls[0][1]


def test_a_read_is_repeated_while_the_server_restarts(users, address):
    users.failures = 2
    with connect(address) as client:
        assert client.myself().name == "me"
    assert len(users.calls) == 3


def test_a_read_is_given_up_soon(users, address):
    # As docs/errors.md says.
    users.failures = 5
    begin = time.monotonic()
    with connect(address) as client, pytest.raises(ServerUnavailable):
        client.myself()
    assert len(users.calls) == 5
    assert 1 < time.monotonic() - begin < 10


@pytest.mark.parametrize(
    "call",
    [
        lambda client: next(client.model_versions("m")).version,
        lambda client: client.tag_model("m", 3, "good").version,
        lambda client: client.predict("m", np.zeros(1)).mean[0],
    ],
    ids=["versions", "tag", "predict"],
)
def test_idempotent_calls_are_repeated(users, address, call):
    users.failures = 2
    with connect(address) as client:
        assert call(client) == 3
    assert len(users.calls) == 3


def test_calls_that_are_not_idempotent_are_not_repeated(users, address):
    users.failures = 1
    with connect(address) as client, pytest.raises(ServerUnavailable):
        client.create_user("name")
    assert len(users.calls) == 1


def test_lists_fetch_all_pages(users, address):
    with connect(address) as client:
        names = [user.name for user in client.users("CLIENT")]
    assert names == ["0-0", "0-1", "1-0", "1-1"]
    assert [(request.page_token, request.page_size, request.role) for request, _ in users.calls] == [
        ("", 1000, 3),
        ("1", 1000, 3),
    ]


def test_an_unknown_role_is_rejected(address):
    with connect(address) as client, pytest.raises(ValueError, match="ROLE_KING"):
        client.create_user("name", "KING")


def test_an_unreachable_server_is_reported():
    with connect("127.0.0.1:1") as client, pytest.raises(ServerUnavailable, match=r"127\.0\.0\.1:1 .*fedround serve"):
        client.create_user("name")


@pytest.mark.parametrize(
    ("server", "loopback"),
    [
        ("127.0.0.1:50051", True),
        ("127.9.9.9:1", True),
        ("localhost:50051", True),
        ("[::1]:50051", True),
        ("ipv4:127.0.0.1:50051", False),
        ("dns:///localhost:50051", True),
        ("unix:/run/fedround.sock", True),
        ("10.0.0.1:50051", False),
        ("0.0.0.0:50051", False),
        ("localhost.example.org:50051", False),
        ("example.org:50051", False),
    ],
)
def test_plaintext_is_the_default_on_loopback_only(server, loopback, monkeypatch):
    assert is_loopback(server) is loopback
    kinds = []
    monkeypatch.setattr(grpc, "insecure_channel", lambda *a, **k: kinds.append("plaintext"))
    monkeypatch.setattr(grpc, "secure_channel", lambda *a, **k: kinds.append("tls"))
    for insecure in (None, True, False):
        open_channel(server, insecure=insecure)
    assert kinds == ["plaintext" if loopback else "tls", "plaintext", "tls"]


def test_a_tls_file_enables_tls_on_loopback(tmp_path, monkeypatch):
    kinds = []
    monkeypatch.setattr(grpc, "ssl_channel_credentials", lambda **files: files)
    monkeypatch.setattr(grpc, "secure_channel", lambda server, files, options: kinds.append(files))
    ca = tmp_path / "ca.pem"
    ca.write_bytes(b"authority")
    open_channel("127.0.0.1:1", tls_ca=ca)
    open_channel("127.0.0.1:1", tls_ca=ca, tls_cert=ca, tls_key=ca)
    assert kinds == [
        {"root_certificates": b"authority", "private_key": None, "certificate_chain": None},
        {"root_certificates": b"authority", "private_key": b"authority", "certificate_chain": b"authority"},
    ]


def test_contradicting_options_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="insecure means plaintext"):
        connect("127.0.0.1:1", tls_ca=tmp_path / "ca.pem", insecure=True)
    with pytest.raises(ValueError, match="both tls_cert and tls_key"):
        connect("127.0.0.1:1", tls_cert=tmp_path / "cert.pem")
    with pytest.raises(FileNotFoundError):
        connect("127.0.0.1:1", tls_ca=tmp_path / "ca.pem")


def test_a_client_accepts_any_channel(address):
    with Client(grpc.insecure_channel(address), "token") as client:
        assert client.myself().name == "me"


def test_loopback_connections_do_not_use_a_proxy(users, address, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with connect(address, "token") as client:
        assert client.myself().name == "me"


def test_white_space_around_a_token_is_removed(users, address):
    with connect(address, "given\n") as client:
        client.myself()
    assert users.calls[-1][1]["authorization"] == "Bearer given"


@pytest.mark.parametrize("token", ["two words", "tök", "a\x00b"])
def test_invalid_tokens_are_rejected_at_once(address, token):
    with pytest.raises(TokenInvalid, match="right file") as error:
        connect(address, token)
    assert token not in str(error.value)


@pytest.mark.parametrize("variable", ["FEDROUND_TLS_CA", "FEDROUND_TLS_CERT", "FEDROUND_TLS_KEY"])
def test_tls_files_are_read_from_the_environment(monkeypatch, tmp_path, variable):
    for name in ("FEDROUND_TLS_CERT", "FEDROUND_TLS_KEY"):
        monkeypatch.setenv(name, str(tmp_path / "there.pem"))
    (tmp_path / "there.pem").touch()
    monkeypatch.setenv(variable, str(tmp_path / "nowhere.pem"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        connect("127.0.0.1:1", "token")
    connect("127.0.0.1:1", "token", insecure=True).close()
