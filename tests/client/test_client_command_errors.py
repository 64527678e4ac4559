"""Errors as text and as JSON, the place of global options, files that exist, and that all output is escaped."""

import ast
import json
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fedround_client.command
from client.scripted import MODEL, TRAINING, USER, done, error_status
from fedround.v1.event_pb2 import Event, RoundClosed, TrainingFailed
from fedround.v1.model_pb2 import GetModelResponse, Model
from fedround.v1.training_pb2 import GetTrainingResponse, GetTrainingsResponse, Training, TrainingSpec
from fedround.v1.user_pb2 import GetMyselfResponse, GetUserResponse, RevokeTokenResponse, User
from fedround_client.command import app

pytestmark = pytest.mark.timeout(30)

HOSTILE = "\x1b[2J\u202e\u200b\x9b\x7f"
FOLDER = Path(fedround_client.command.__file__).parent


def is_safe(text):
    return not any(letter in text for letter in HOSTILE if letter not in "[2J")


def test_an_error_as_json_is_one_object_on_stderr(server, command):
    call = command("user", "create", "Bob", "--format", "json")
    status = error_status(
        grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", HOSTILE, metadata={"a": "b"}, violations={"name": "taken"}
    )
    server.fail("CreateUser", status)
    result = done(call, 1)
    assert result.stdout == ""
    assert is_safe(result.stderr)
    assert json.loads(result.stderr) == {
        "code": "INVALID_ARGUMENT",
        "reason": "FIELD_INVALID",
        "message": HOSTILE,
        "metadata": {"a": "b"},
        "field_violations": {"name": "taken"},
    }


@pytest.mark.parametrize(
    ("line", "exit_code", "reason"),
    [
        ("user list --format json --nonsense", 2, "USAGE"),
        ("user create --format=json", 2, "USAGE"),
        ("--nonsense user list --format json", 2, "USAGE"),
        ("model download m --version 1 --tag best --format json", 2, "USAGE"),
        ("--tls-cert half user list --format json", 2, "USAGE"),
        ("user list --token-file missing --format json", 1, "FILE"),
        ("audit verify --file missing --format json", 3, "FILE"),
        ("predict m missing.npy --format json", 1, "FILE"),
    ],
)
def test_every_error_is_json_if_json_is_asked_for(line, exit_code, reason, monkeypatch, tmp_path):
    monkeypatch.setenv("FEDROUND_TOKEN", "t")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == exit_code, result.output
    error = json.loads(result.stderr)
    assert error.keys() == {"code", "reason", "message", "metadata"}
    assert error["reason"] == reason
    assert error["code"] in grpc.StatusCode.__members__


def test_a_missing_token_is_json_too():
    result = CliRunner().invoke(app, ["user", "list", "--format", "json"])
    assert (result.exit_code, json.loads(result.stderr)["reason"]) == (1, "TOKEN_MISSING")


def test_a_relay_names_the_token_that_is_missing():
    result = CliRunner().invoke(app, ["relay", "--parent", "127.0.0.1:1"], env={"FEDROUND_TOKEN": "fr_x"})
    assert result.exit_code == 1
    assert "TOKEN_MISSING: Set FEDROUND_PARENT_TOKEN, or pass --parent-token-file" in result.stderr


@pytest.mark.parametrize("line", [["user", "list", HOSTILE], ["user", HOSTILE], [f"--{HOSTILE}"]])
def test_errors_of_the_command_line_are_escaped(line):
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 2
    assert is_safe(result.output)


def test_choices_of_a_missing_option_are_one_text():
    result = CliRunner().invoke(app, ["track", "digits"])
    assert result.exit_code == 2
    assert "csv" in result.output
    assert "\\n" not in result.output


def test_a_missing_file_is_named_without_an_error_number():
    result = CliRunner().invoke(app, ["user", "list", "--token-file", "missing"])
    assert result.stderr == "error: FILE: missing: No such file or directory\n"


def test_global_options_may_stand_after_the_command(server, command, tmp_path):
    file = tmp_path / "token"
    file.write_text("from-the-file")
    call = command("--server", "a:1", "user", "show", "--server", "b:2", "--token-file", file, "--insecure")
    server.reply("GetMyself", GetMyselfResponse(user=User(user_id=USER)))
    done(call)
    address, token, options = server.connected
    assert (address, token, options["insecure"]) == ("b:2", "from-the-file", True)


def test_help_says_that_global_options_may_stand_after_the_command():
    assert "after the command" in CliRunner().invoke(app, ["--help"]).stdout
    assert "--token" not in CliRunner().invoke(app, ["user", "show", "--help"]).stdout


def test_confirmations_are_json_too(server, command):
    call = command("user", "revoke-token", "0123", USER, "--format", "json")
    server.reply("RevokeToken", RevokeTokenResponse())
    result = done(call)
    assert (json.loads(result.stdout), result.stderr) == ({"revoked_token_id": "0123"}, "")


@pytest.mark.parametrize("form", ["table", "json"])
def test_names_that_a_terminal_would_obey_are_escaped_everywhere(server, command, form):
    spec = TrainingSpec(name=HOSTILE, description=HOSTILE, metric_names=[HOSTILE])
    hostile = Training(training_id=TRAINING, spec=spec, state=4)
    hostile.error.message = HOSTILE
    answers = {
        f"training show {TRAINING}": [("GetTraining", GetTrainingResponse(training=hostile))],
        "training list": [("GetTrainings", GetTrainingsResponse(trainings=[hostile]))],
        f"model show {MODEL}": [("GetModel", GetModelResponse(model=Model(name=HOSTILE, description=HOSTILE)))],
        f"user show {USER}": [
            ("GetUser", GetUserResponse(user=User(name=HOSTILE, certificate_names=[HOSTILE]))),
        ],
    }
    for line, replies in answers.items():
        call = command(*line.split(), "--format", form)
        for method, response in replies:
            server.reply(method, response)
        stdout = done(call).stdout
        assert is_safe(stdout)
        assert ("\\x1b[2J" if form == "table" else "\\u001b[2J") in stdout


@pytest.mark.parametrize("form", ["table", "json"])
def test_events_are_escaped(server, command, form):
    call = command("training", "watch", TRAINING, "--format", form)
    _, rpc = server.stream("Subscribe")
    closed = RoundClosed(kind=1, metrics={HOSTILE: 0.5})
    rpc.send_response(Event(training_id=TRAINING, sequence=1, round_closed=closed))
    failed = TrainingFailed(reason=HOSTILE, message=HOSTILE)
    rpc.send_response(Event(training_id=TRAINING, sequence=2, training_failed=failed))
    if form == "table":
        server.reply("GetTraining", GetTrainingResponse(training=Training(spec=TrainingSpec(target_num_updates=4))))
    lines = done(call, 4).stdout.splitlines()
    assert len(lines) == 2
    assert is_safe("".join(lines))
    if form == "table":
        assert lines[0].startswith("round 1 of 4 is done: training, version 0")


def test_a_time_and_an_enum_that_are_none_are_no_traceback(server, command):
    strange = Training(training_id=TRAINING, state=77)
    strange.create_time.seconds = 2**62
    call = command("training", "show", TRAINING)
    server.reply("GetTraining", GetTrainingResponse(training=strange))
    assert "no valid time" in done(call).stdout
    call = command("training", "show", TRAINING, "--format", "json")
    server.reply("GetTraining", GetTrainingResponse(training=strange))
    assert json.loads(done(call, 1).stderr)["reason"] == "RESPONSE_INVALID"


@pytest.mark.parametrize("place", ["audit export {}", "predict m x.npy --output {}", "model download {} --output {{}}"])
def test_files_that_exist_are_refused_in_the_same_words(command, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "x.npy", np.zeros(1))
    (tmp_path / "old").write_text("old")
    line = place.format(MODEL).format("old") if "{{" in place else place.format("old")
    stderr = done(command(*line.split()), 2).stderr
    assert stderr == "error: FILE_EXISTS: old exists: use --force to overwrite it, or give another name\n"
    assert (tmp_path / "old").read_text() == "old"


def test_convert_refuses_and_overwrites_like_the_others(command, tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "net.pt")
    target = tmp_path / "net.safetensors"
    target.write_text("old")
    assert "FILE_EXISTS" in done(command("convert", tmp_path / "net.pt"), 2).stderr
    assert target.read_text() == "old"
    done(command("convert", tmp_path / "net.pt", "--force"))
    assert target.read_bytes() != b"old"


def test_all_output_of_commands_passes_through_one_function():
    printing = set()
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {
                *("print", "typer.echo", "typer.secho", "sys.stdout.write", "sys.stderr.write", "Console"),
            }:
                printing.add(path.name)
    assert printing == {"output.py"}
