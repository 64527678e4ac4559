import json
import os
import re
import sys
from types import ModuleType

import grpc
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from typer.testing import CliRunner

from client.scripted import MODEL, TRAINING, UNAVAILABLE, USER, done, error_status
from fedround.v1.model_pb2 import (
    GetMetricsResponse,
    GetModelResponse,
    GetModelsResponse,
    GetModelVersionsResponse,
    MetricReport,
    Model,
    ModelVersion,
    RemoveModelRequest,
    RemoveModelResponse,
    TagModelVersionResponse,
)
from fedround.v1.round_pb2 import GetRoundResponse, Round, RoundParticipant
from fedround.v1.training_pb2 import (
    GetTrainingResponse,
    GetTrainingsResponse,
    RegisterClientsResponse,
    RemoveClientsResponse,
    RemoveTrainingRequest,
    RemoveTrainingResponse,
    StartTrainingResponse,
    Training,
    TrainingSpec,
)
from fedround.v1.user_pb2 import (
    CreateUserResponse,
    GetMyselfResponse,
    GetUserResponse,
    GetUsersResponse,
    RemoveUserRequest,
    RemoveUserResponse,
    RevokeTokenRequest,
    RevokeTokenResponse,
    RotateTokenResponse,
    SetCertificateNamesResponse,
    User,
)
from fedround_client import to_safetensors
from fedround_client.command import app, serve

pytestmark = pytest.mark.timeout(30)

ALICE = User(user_id=USER, name="Alice [red]\x1b[2J", role=3)
TRAINED = Training(training_id=TRAINING, spec=TrainingSpec(name="digits", target_num_updates=5), state=2, round=1)
ENDED = Training(training_id=TRAINING, state=3)
FILE = to_safetensors({"w": np.ones(3, np.float32)})


CALLS = [
    ("user show", "GetMyself", GetMyselfResponse(user=ALICE), {}),
    (f"user show {USER}", "GetUser", GetUserResponse(user=ALICE), {"user_id": USER}),
    (f"user rotate-token {USER}", "RotateToken", RotateTokenResponse(token="new"), {"user_id": USER}),
    (
        f"user rotate-token {USER} --overlap 2 --lifetime 0.5",
        "RotateToken",
        RotateTokenResponse(token="new"),
        {"user_id": USER, "overlap": "7200s", "lifetime": "1800s"},
    ),
    (
        f"user certificates {USER} a.example.org b",
        "SetCertificateNames",
        SetCertificateNamesResponse(user=ALICE),
        {"user_id": USER, "certificate_names": ["a.example.org", "b"]},
    ),
    (
        "user create Bob --lifetime 1 --certificate-name b --certificate-name c",
        "CreateUser",
        CreateUserResponse(token="t"),
        {"name": "Bob", "role": "ROLE_CLIENT", "lifetime": "3600s", "certificate_names": ["b", "c"]},
    ),
    (
        "user create Bob --role actor",
        "CreateUser",
        CreateUserResponse(token="t"),
        {"name": "Bob", "role": "ROLE_ACTOR"},
    ),
    (f"training start {TRAINING}", "StartTraining", StartTrainingResponse(training=TRAINED), {"training_id": TRAINING}),
    (f"training show {TRAINING}", "GetTraining", GetTrainingResponse(training=ENDED), {"training_id": TRAINING}),
    (
        f"training clients add {TRAINING} {USER} {MODEL}",
        "RegisterClients",
        RegisterClientsResponse(training=TRAINED),
        {"training_id": TRAINING, "client_ids": [USER, MODEL]},
    ),
    (
        f"training clients remove {TRAINING} {USER}",
        "RemoveClients",
        RemoveClientsResponse(training=TRAINED),
        {"training_id": TRAINING, "client_ids": [USER]},
    ),
    (
        f"training round {TRAINING} 1",
        "GetRound",
        GetRoundResponse(round=Round(participants=[RoundParticipant(user_id=USER)])),
        {"training_id": TRAINING, "round": 0},
    ),
    (
        f"training round {TRAINING} --number 2",
        "GetRound",
        GetRoundResponse(round=Round(number=1)),
        {"training_id": TRAINING, "round": 1},
    ),
    ("user list --role CLIENT", "GetUsers", GetUsersResponse(users=[ALICE]), {"role": "ROLE_CLIENT"}),
    (
        "training list --role client",
        "GetTrainings",
        GetTrainingsResponse(trainings=[TRAINED]),
        {"role": "TRAINING_ROLE_CLIENT"},
    ),
    ("model list", "GetModels", GetModelsResponse(models=[Model(model_id=MODEL)]), {}),
    (
        f"metrics {MODEL}",
        "GetMetrics",
        GetMetricsResponse(reports=[MetricReport(training_id=TRAINING, metrics={"loss": 0.5})]),
        {"model_id": MODEL},
    ),
    (f"model show {MODEL}", "GetModel", GetModelResponse(model=Model(model_id=MODEL)), {"model_id": MODEL}),
    (
        f"model versions {MODEL}",
        "GetModelVersions",
        GetModelVersionsResponse(versions=[ModelVersion(version=3, tags=["best"])]),
        {"model_id": MODEL},
    ),
    (
        f"model tag {MODEL} 3 pinned",
        "TagModelVersion",
        TagModelVersionResponse(version=ModelVersion(model_id=MODEL)),
        {"model_id": MODEL, "version": 3, "tag": "pinned", "remove": None},
    ),
    (
        f"model tag {MODEL} 3 pinned --remove",
        "TagModelVersion",
        TagModelVersionResponse(version=ModelVersion(model_id=MODEL)),
        {"version": 3, "tag": "pinned", "remove": True},
    ),
]


@pytest.mark.parametrize(("line", "method", "response", "request_fields"), CALLS, ids=[call[0] for call in CALLS])
@pytest.mark.parametrize("form", ["table", "json"])
def test_commands_send_requests_and_print_responses(server, command, line, method, response, request_fields, form):
    call = command(*line.split(), "--format", form)
    request = server.reply(method, response)
    if method == "GetRound" and form == "table":  # for the number of rounds
        server.reply("GetTraining", GetTrainingResponse(training=TRAINED))
    result = done(call)
    sent = MessageToDict(request, preserving_proto_field_name=True)
    assert {name: sent.get(name) for name in request_fields} == request_fields
    ids = [word for word in (USER, TRAINING, MODEL) if word in str(response)]
    if form == "json":
        printed = json.loads(result.stdout)
        inner = next(iter(MessageToDict(response, preserving_proto_field_name=True).values()))
        if isinstance(printed, list):
            assert len(printed) == len(inner) == 1
            printed, inner = printed[0], inner[0]
        if isinstance(inner, dict):
            assert inner.keys() <= printed.keys()
            assert all(printed[name] == inner[name] for name in inner if not isinstance(inner[name], dict | list))
    elif method != "GetMetrics":
        assert all(word in result.stdout for word in ids)
    assert result.stderr == ""


def test_tables_print_names_literally_and_without_control_characters(server, command):
    call = command("user", "list")
    server.reply("GetUsers", GetUsersResponse(users=[ALICE]))
    out = done(call).stdout
    assert "Alice [red]\\x1b[2J" in out
    assert "\x1b" not in out
    assert out.splitlines()[0].split() == ["USER_ID", "NAME", "ROLE", "CREATED"]
    assert out.splitlines()[1].split()[0] == USER


def test_json_has_zeros_and_the_field_names_of_the_protos(server, command):
    call = command("training", "show", TRAINING, "--format", "json")
    server.reply("GetTraining", GetTrainingResponse(training=TRAINED))
    printed = json.loads(done(call).stdout)
    assert printed["model_version"] == 0
    assert printed["state"] == "TRAINING_STATE_ONGOING"
    assert printed["spec"]["target_num_updates"] == 5


def test_the_token_of_a_new_user_is_printed(server, command):
    call = command("user", "create", "Bob")
    request = server.reply("CreateUser", CreateUserResponse(user=ALICE, token="bobs-token"))
    assert "bobs-token" in done(call).stdout
    assert request.role == 3


@pytest.mark.parametrize(
    ("line", "request_", "response"),
    [
        (f"user remove {USER} --force", RemoveUserRequest(user_id=USER, force=True), RemoveUserResponse()),
        (
            f"user remove {USER} --remove-models",
            RemoveUserRequest(user_id=USER, remove_models=True),
            RemoveUserResponse(),
        ),
        (
            f"training remove {TRAINING} --force",
            RemoveTrainingRequest(training_id=TRAINING, force=True),
            RemoveTrainingResponse(),
        ),
        (
            f"user revoke-token 0123456789abcdef {USER}",
            RevokeTokenRequest(user_id=USER, token_id="0123456789abcdef"),
            RevokeTokenResponse(),
        ),
        (f"model remove {MODEL}", RemoveModelRequest(model_id=MODEL), RemoveModelResponse()),
    ],
)
def test_removals_are_confirmed_on_stderr(server, command, line, request_, response):
    call = command(*line.split())
    assert server.reply(type(request_).__name__.removesuffix("Request"), response) == request_
    result = done(call)
    assert result.stdout == ""
    assert re.search("is (removed|revoked)", result.stderr)


def test_participants_are_listed_with_their_names(server, command):
    call = command("training", "clients", "list", TRAINING)
    server.reply("GetTraining", GetTrainingResponse(training=Training(participant_ids=[USER, MODEL])))
    server.reply("GetUsers", GetUsersResponse(users=[User(user_id=USER, name="Bob")]))
    assert done(call).stdout.split() == ["USER_ID", "NAME", USER, "Bob", MODEL]
    call = command("training", "clients", "list", TRAINING, "--format", "json")
    training = Training(participant_ids=[USER], num_participants=3)
    server.reply("GetTraining", GetTrainingResponse(training=training))
    ended = done(call)
    assert json.loads(ended.stdout) == [USER]
    assert ended.stderr == "These are 1 of 3 participants.\n"


def test_an_error_is_one_line_with_its_fields(server, command):
    call = command("user", "create", "Bob")
    status = error_status(
        grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", "The name\nis taken.", violations={"name": "choose another"}
    )
    server.fail("CreateUser", status)
    result = done(call, 1)
    assert result.stdout == ""
    assert result.stderr == "error: FIELD_INVALID: The name is taken.; name: choose another\n"


def test_the_error_of_an_unreachable_server_says_what_to_do(server, command):
    call = command("user", "show")
    server.fail("GetMyself", UNAVAILABLE)
    assert "fedround serve" in done(call, 1).stderr


def test_without_a_token_the_error_names_the_file_of_the_admins_token(monkeypatch):
    result = CliRunner().invoke(app, ["user", "list"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: TOKEN_MISSING: ")
    assert "DATA_DIR/admin.token" in result.stderr


def test_the_token_may_be_in_a_file(server, command, tmp_path):
    file = tmp_path / "token"
    file.write_text("from-the-file\n")
    call = command("--server", "example.org:1", "--token-file", file, "user", "show")
    server.reply("GetMyself", GetMyselfResponse(user=ALICE))
    done(call)
    address, token, options = server.connected
    assert (address, token, options["insecure"]) == ("example.org:1", "from-the-file", None)


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "user create",
        "user create Bob --role KING",
        "training create --name n --target-num-updates 1",
        f"training create m --model-id {MODEL} --name n --target-num-updates 1",
        "training create m --name n --target-num-updates 0",
        "training create m --name n --target-num-updates 99999999999",
        "training create m --name n --target-num-updates 1 --min-updates 99999999999",
        "training create m --name n --target-num-updates 1 --deadline nan",
        "training create m --name n --target-num-updates 1 --deadline inf",
        "training create m --name n --target-num-updates 1 --deadline 0",
        "training create m --name n --target-num-updates 1 --max-retries 2",
        "user create Bob --lifetime 0",
        "user rotate-token --lifetime 0",
        "user rotate-token --overlap 721",
        "audit verify --file a --data-dir b",
        "audit verify --file a --database postgresql://there/db",
        "audit verify --database postgresql://there/db",
        "audit export a --database postgresql://there/db",
        f"training round {TRAINING} 99999999999",
        f"training round {TRAINING} 0",
        f"training round {TRAINING} --number 0",
        f"training round {TRAINING} 1 --round 1",
        f"training replay {TRAINING} 1 --round 1",
        f"model download {MODEL} --version 99999999999",
        f"model tag {MODEL} 99999999999 pinned",
        f"predict {MODEL} x.npy --version 99999999999",
        "training create m --name n --target-num-updates 1 --aggregation fedadam --server-optimizer adam",
        "training create m --name n --target-num-updates 1 --clipping adam",
        "training create m --name n --target-num-updates 1 --minimize a --maximize b",
        "training create m --name n --target-num-updates 1 --patience 2",
        "training create m --name n --target-num-updates 1 --samples 2",
        "training create m --name n --target-num-updates 1 --uncertainty mc-dropout --swag-rank 2",
        f"predict {MODEL} x.npy --uncertainty ensemble --member {MODEL}:new",
        f"predict {MODEL} x.npy --uncertainty ensemble --samples 3",
        f"predict {MODEL} x.npy --version 1 --tag best",
        f"model download {MODEL} --version 1 --tag best",
        f"model tag {MODEL} best",
        f"metrics {MODEL} --format xml",
        "user list --format xml",
        "--tls-cert only-half user list",
    ],
)
def test_wrong_usage_exits_with_2(line, monkeypatch):
    monkeypatch.setenv("FEDROUND_TOKEN", "t")
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 2, result.output


@pytest.mark.parametrize(
    "line",
    [
        "--token-file {0} user list",
        "model upload {0}",
        "predict m {0}",
        "training create {0} --name n --target-num-updates 1",
    ],
)
def test_a_missing_file_is_named(line, monkeypatch, tmp_path):
    monkeypatch.setenv("FEDROUND_TOKEN", "t")
    missing = tmp_path / "missing"
    result = CliRunner().invoke(app, line.format(missing).split())
    assert result.exit_code == 1
    assert result.stderr.startswith("error: FILE: ")
    assert str(missing) in result.stderr


def test_an_unreadable_audit_log_has_another_exit_code_than_a_broken_one(server, command, tmp_path):
    assert "missing.jsonl" in done(command("audit", "verify", "--file", tmp_path / "missing.jsonl"), 3).stderr
    call = command("audit", "verify")
    server.fail("GetAuditHead", error_status(grpc.StatusCode.PERMISSION_DENIED, "ROLE_REQUIRED"))
    assert "ROLE_REQUIRED" in done(call, 3).stderr
    (tmp_path / "other").write_bytes(b"\xff no export\n")
    stderr = done(command("audit", "verify", "--file", tmp_path / "other"), 1).stderr
    assert stderr == "error: AUDIT_BROKEN: entry 1: line 1 is not an entry of an export\n"


def test_a_failed_export_leaves_no_file_and_overwrites_none(server, command, tmp_path):
    file = tmp_path / "audit.jsonl"
    call = command("audit", "export", file)
    server.fail("GetAuditHead", error_status(grpc.StatusCode.PERMISSION_DENIED, "ROLE_REQUIRED"))
    done(call, 1)
    assert not file.exists()
    file.write_text("existing")
    assert "--force" in done(command("audit", "export", file), 2).stderr
    assert file.read_text() == "existing"


def test_serve_executes_the_server_with_all_arguments(monkeypatch):
    executed = []
    monkeypatch.setenv("FEDROUND_TOKEN", "t")
    monkeypatch.setattr(serve, "find_spec", lambda name: object())
    monkeypatch.setattr(os, "execv", lambda *arguments: executed.append(arguments))
    # Some are also global options of the command.
    arguments = ["--tls-cert", "c", "--tls-key", "k", "--insecure", "--listen", "127.0.0.1:0", "--help", "-x"]
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 0
    python = sys.executable
    assert executed == [(python, [python, "-P", "-m", "fedround_server", *arguments])]
    assert "FEDROUND_TOKEN" not in os.environ


@pytest.mark.parametrize(("command_name", "extra"), [("serve", "server"), ("demo", "demo")])
def test_the_error_of_a_missing_extra_says_how_to_install_it(monkeypatch, command_name, extra):
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "torch" else object())
    result = CliRunner().invoke(app, [command_name])
    assert result.exit_code == 1
    assert "torch" in result.stderr
    assert f'pip install "fedround[{extra}]"' in result.stderr


def test_demo_passes_its_arguments_on(monkeypatch):
    module = ModuleType("fedround_client.demo.run")
    module.main = lambda arguments: len(arguments)
    monkeypatch.setitem(sys.modules, "fedround_client.demo.run", module)
    monkeypatch.setattr(serve, "find_spec", lambda name: object())
    assert CliRunner().invoke(app, ["demo", "--rounds", "3"]).exit_code == 2
