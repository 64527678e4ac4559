"""Names and prefixes of ids in place of ids, and their completion in a shell."""

import json

import grpc
import pytest
from typer.testing import CliRunner

from client.scripted import MODEL, OK, OTHER, TRAINING, USER, done, error_status
from fedround.v1.aggregation_pb2 import Ensemble, EnsembleMember
from fedround.v1.inference_pb2 import PredictResponse
from fedround.v1.model_pb2 import GetModelResponse, GetModelsResponse, Model
from fedround.v1.training_pb2 import (
    CreateTrainingResponse,
    GetTrainingResponse,
    GetTrainingsResponse,
    RegisterClientsResponse,
    Training,
    TrainingSpec,
)
from fedround.v1.user_pb2 import GetMyselfResponse, GetUserResponse, GetUsersResponse, User
from fedround_client.command import app, names

pytestmark = pytest.mark.timeout(30)

SECOND = TRAINING[:-1] + "2"
NONE = GetTrainingsResponse()
USERS = GetUsersResponse(users=[User(user_id=USER, name="site 1"), User(user_id=OTHER, name="site2")])


def training(training_id, name, model_id=MODEL):
    return Training(training_id=training_id, spec=TrainingSpec(name=name), model_id=model_id)


def list_trainings(server, *trainings, as_client=()):
    server.reply("GetTrainings", GetTrainingsResponse(trainings=trainings))
    server.reply("GetTrainings", GetTrainingsResponse(trainings=as_client))


@pytest.mark.parametrize("text", ["digits", TRAINING[:1], TRAINING.upper()[:12]])
def test_a_training_is_found_by_its_name_or_the_beginning_of_its_id(server, command, text):
    call = command("training", "show", text, "--format", "json")
    list_trainings(server, training(OTHER, "other"), as_client=[training(TRAINING, "digits")])
    assert server.reply("GetTraining", GetTrainingResponse(training=Training())).training_id == TRAINING
    done(call)


def test_a_name_precedes_the_beginning_of_an_id(server, command):
    call = command("training", "show", "1", "--format", "json")
    list_trainings(server, training(TRAINING, "digits"), training(OTHER, "1"))
    assert server.reply("GetTraining", GetTrainingResponse(training=Training())).training_id == OTHER
    done(call)


@pytest.mark.parametrize("text", ["digits", "1111"])
def test_an_ambiguous_name_lists_the_candidates(server, command, text):
    call = command("training", "show", text)
    list_trainings(server, training(TRAINING, "digits"), training(SECOND, "digits"), training(OTHER, "x"))
    stderr = done(call, 1).stderr
    assert stderr.startswith(f"error: NAME_AMBIGUOUS: {text!r} fits 2 trainings: ")
    assert TRAINING in stderr
    assert SECOND in stderr
    assert OTHER not in stderr


def test_a_training_that_is_listed_twice_is_not_ambiguous(server, command):
    call = command("training", "show", "digits", "--format", "json")
    list_trainings(server, training(TRAINING, "digits"), as_client=[training(TRAINING, "digits")])
    server.reply("GetTraining", GetTrainingResponse(training=Training()))
    done(call)


@pytest.mark.parametrize("text", ["nobody", "", "111111111111"])
def test_what_is_not_found_says_how_to_list(server, command, text):
    call = command("training", "show", text, "--format", "json")
    list_trainings(server, training(TRAINING, "digits"))
    error = json.loads(done(call, 1).stderr)
    assert (error["code"], error["reason"]) == ("NOT_FOUND", "TRAINING_NOT_FOUND")
    assert "fedround training list" in error["message"]


def test_an_id_that_is_none_is_never_used(server, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = command("model", "download", "evil")
    server.reply("GetModels", GetModelsResponse(models=[Model(model_id="../../evil", name="evil")]))
    server.reply("GetTrainings", NONE)
    assert "MODEL_NOT_FOUND" in done(call, 1).stderr


def test_a_participant_names_the_model_by_its_training(server, command):
    call = command("model", "show", "digits")
    server.reply("GetModels", GetModelsResponse())
    server.reply("GetTrainings", GetTrainingsResponse(trainings=[training(TRAINING, "digits")]))
    assert server.reply("GetModel", GetModelResponse(model=Model(model_id=MODEL))).model_id == MODEL
    done(call)


def test_participants_are_registered_by_name(server, command):
    call = command("training", "clients", "add", TRAINING, "site 1", OTHER[:6])
    server.reply("GetUsers", USERS)
    request = server.reply("RegisterClients", RegisterClientsResponse(training=Training()))
    assert list(request.client_ids) == [USER, OTHER]
    done(call)


def test_a_participant_may_name_itself(server, command):
    call = command("user", "show", "site 1")
    server.fail("GetUsers", error_status(grpc.StatusCode.PERMISSION_DENIED, "ROLE_REQUIRED"))
    server.reply("GetMyself", GetMyselfResponse(user=USERS.users[0]))
    assert server.reply("GetUser", GetUserResponse(user=USERS.users[0])).user_id == USER
    done(call)


def test_a_training_is_created_with_names(server, command):
    call = command(
        *["training", "create", "--model-id", "net", "--name", "n", "--target-num-updates", "1", "--client", "site2"],
        *f"--uncertainty ensemble --member net:3 --member {OTHER}".split(),
    )
    models = GetModelsResponse(models=[Model(model_id=MODEL, name="net")])
    server.reply("GetUsers", USERS)
    for _ in range(2):
        server.reply("GetModels", models)
        server.reply("GetTrainings", NONE)
    rpc = server.upload("CreateTraining")
    spec = rpc.take_request().spec
    rpc.terminate(CreateTrainingResponse(training=Training()), *OK)
    done(call)
    assert (spec.model_id, list(spec.client_ids)) == (MODEL, [OTHER])
    members = [EnsembleMember(model_id=MODEL, version=3), EnsembleMember(model_id=OTHER)]
    assert spec.uncertainty.ensemble == Ensemble(members=members)


def complete(server, monkeypatch, line):
    environment = {
        "_FEDROUND_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
        "FEDROUND_TOKEN": "t",
    }
    return server.run(CliRunner().invoke, app, [], env=environment, prog_name="fedround")


@pytest.mark.parametrize(
    ("beginning", "completions"),
    [("", {"digits", OTHER, SECOND}), ("di", {"digits"}), ("111", {TRAINING, SECOND}), ("x", set())],
)
def test_names_and_ids_are_completed(server, command, monkeypatch, beginning, completions):
    call = complete(server, monkeypatch, f"fedround training show {beginning}")
    # A name that a shell would split, or that a terminal would obey, is replaced by its id.
    list_trainings(server, training(TRAINING, "digits"), training(OTHER, "two words"), training(SECOND, "\x1b[2J"))
    assert set(call.result(20).stdout.split()) == completions


def test_completion_fails_silently(server, command, monkeypatch):
    call = complete(server, monkeypatch, "fedround user show ")
    server.fail("GetUsers", error_status(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID"))
    result = call.result(20)
    assert (result.stdout.strip(), result.stderr) == ("", "")


def test_completion_waits_for_no_server(server, command, monkeypatch):
    monkeypatch.setattr(names, "COMPLETION_SECONDS", 0.05)
    result = complete(server, monkeypatch, "fedround model show ").result(20)
    assert (result.stdout.strip(), result.stderr) == ("", "")


def test_predictions_name_the_model(server, command, tmp_path):
    import numpy as np

    np.save(tmp_path / "x.npy", np.zeros(2, np.float32))
    call = command("predict", "net", tmp_path / "x.npy")
    server.reply("GetModels", GetModelsResponse(models=[Model(model_id=MODEL, name="net")]))
    server.reply("GetTrainings", NONE)
    assert server.reply("Predict", PredictResponse()).model_id == MODEL
    call.result(20)
