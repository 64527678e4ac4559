"""Configuration and control in the SDK and the command."""

import logging

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st
from typer import BadParameter

from client.rounds import Rounds, finished, plus_one, round_started
from client.scripted import OK, OTHER, TRAINING, USER, done, until
from fedround.v1 import event_pb2
from fedround.v1.config_pb2 import (
    Config,
    ConfigValue,
    CosineSchedule,
    ExponentialSchedule,
    Schedule,
    Step,
    StepSchedule,
)
from fedround.v1.control_pb2 import (
    PauseTrainingResponse,
    ResumeTrainingResponse,
    StopTrainingResponse,
    UpdateConfigResponse,
)
from fedround.v1.event_pb2 import Event, RoundClosed, TrainingFinished
from fedround.v1.round_pb2 import ROUND_STATE_DONE, GetRoundResponse, Round
from fedround.v1.training_pb2 import (
    TRAINING_STATE_COMPLETED,
    TRAINING_STATE_ONGOING,
    CreateTrainingResponse,
    GetTrainingResponse,
    Training,
    TrainingSpec,
)
from fedround.v1.user_pb2 import GetUsersResponse, User
from fedround_client.command.config_options import config_text, parse, parse_changes
from fedround_client.config import plain, values

pytestmark = pytest.mark.timeout(30)

RUNNING = Training(training_id=TRAINING, state=TRAINING_STATE_ONGOING, spec=TrainingSpec(name="digits"))
PAUSED = Training(training_id=TRAINING, state=TRAINING_STATE_ONGOING, paused=True, spec=TrainingSpec(name="digits"))


def event(sequence, **payload):
    return Event(training_id=TRAINING, sequence=sequence, **payload)


def test_a_round_has_plain_values(server):
    seen = []

    def train(model, round_):
        seen.append(round_.config)
        return plus_one(model, round_)

    rounds = Rounds(server, train)
    config = values({"learning_rate": 0.1, "epochs": 2, "loss": "huber", "augment": True})
    rounds.send(round_started(1, 0, config=config))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    rounds.take_update()
    rounds.send(finished(2))
    rounds.result()
    (found,) = seen
    assert found == {"augment": True, "epochs": 2, "learning_rate": 0.1, "loss": "huber"}
    assert [type(found[name]) for name in ("augment", "epochs", "learning_rate", "loss")] == [bool, int, float, str]


def test_what_a_newer_server_sends_is_left_out():
    assert plain({"a": ConfigValue(), "b": ConfigValue(int64_value=0)}) == {"b": 0}


def test_python_values_become_messages():
    options = {
        "bool": True,
        "int": 3,
        "float": 0.5,
        "numpy": np.float32(0.5),
        "text": "x",
        "steps": {30: 0.01, 0: 0.1},
        "exponential": ExponentialSchedule(start=1.0, factor=0.5),
        "cosine": CosineSchedule(start=1.0, end=0.0, rounds=5),
        "same steps": StepSchedule(steps=[Step(round=0, value=0.1), Step(round=30, value=0.01)]),
        "removed": None,
    }
    found = values(options)
    kinds = {name: value.WhichOneof("value") for name, value in found.items()}
    assert kinds == {
        "bool": "bool_value",
        "int": "int64_value",
        "float": "double_value",
        "numpy": "double_value",
        "text": "string_value",
        "steps": "schedule",
        "exponential": "schedule",
        "cosine": "schedule",
        "same steps": "schedule",
        "removed": None,
    }
    assert found["steps"] == found["same steps"]


@pytest.mark.parametrize(
    ("option", "error", "words"),
    [
        ([1, 2], TypeError, "'rate' is of the type list"),
        (2**63, ValueError, "'rate' is out of range"),
        ({2**40: 0.1}, ValueError, "'rate' is out of range"),
    ],
)
def test_values_of_other_types_are_rejected_with_their_name(option, error, words):
    with pytest.raises(error, match=words):
        values({"rate": option})


def test_calls_have_a_request_id_of_their_own(server):
    client = server.client
    calls = [
        (lambda: client.stop_training(TRAINING), "StopTraining", StopTrainingResponse, {"when": "STOP_AFTER_ROUND"}),
        (lambda: client.stop_training(TRAINING, now=True), "StopTraining", StopTrainingResponse, {"when": "STOP_NOW"}),
        (lambda: client.pause_training(TRAINING), "PauseTraining", PauseTrainingResponse, {}),
        (lambda: client.resume_training(TRAINING), "ResumeTraining", ResumeTrainingResponse, {}),
        (
            lambda: client.update_config(TRAINING, {"rate": 0.5, "old": None}, client_config={USER: {"epochs": 2}}),
            "UpdateConfig",
            UpdateConfigResponse,
            {
                "config": {"rate": {"double_value": 0.5}, "old": {}},
                "client_config": {USER: {"values": {"epochs": {"int64_value": "2"}}}},
            },
        ),
    ]
    ids = set()
    for call, method, response, expected in calls:
        result = server.run(call)
        sent = MessageToDict(server.reply(method, response(training=RUNNING)), preserving_proto_field_name=True)
        assert result.result(10) == RUNNING
        ids.add(sent.pop("request_id"))
        assert sent == {"training_id": TRAINING, **expected}
    assert len(ids) == len(calls)
    result = server.run(client.pause_training, TRAINING, request_id=OTHER)
    assert server.reply("PauseTraining", PauseTrainingResponse()).request_id == OTHER
    result.result(10)


def test_a_training_is_created_with_a_configuration(server):
    schedule = CosineSchedule(start=0.1, end=0.001, rounds=50)
    call = server.run(
        server.client.create_training,
        name="digits",
        target_num_updates=50,
        model_id=OTHER,
        client_ids=[USER],
        config={"learning_rate": schedule},
        client_config={USER: {"epochs": 5}},
    )
    rpc = server.upload("CreateTraining")
    spec = rpc.take_request().spec
    rpc.terminate(CreateTrainingResponse(training=RUNNING), *OK)
    call.result(10)
    assert {**spec.config} == {"learning_rate": ConfigValue(schedule=Schedule(cosine=schedule))}
    assert {**spec.client_config} == {USER: Config(values={"epochs": ConfigValue(int64_value=5)})}


@pytest.fixture
def messages(caplog):
    caplog.set_level(logging.INFO, "fedround_client")
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_participant_says_what_its_actor_does(server, messages):
    rounds = Rounds(server)
    rounds.send(event(1, training_paused=event_pb2.TrainingPaused()))
    rounds.send(event(2, training_resumed=event_pb2.TrainingResumed()))
    rounds.send(event(3, stop_requested=event_pb2.StopRequested()))
    rounds.send(event(4, config_updated=event_pb2.ConfigUpdated(from_round=1)))
    rounds.send(event(5, training_finished=TrainingFinished(model_version=3, stopped=True)))
    rounds.result()
    assert messages()[1:] == [
        f"Training {TRAINING} is paused by its actor: no further round opens until it is resumed",
        f"Training {TRAINING} is resumed by its actor",
        f"Training {TRAINING} is stopped by its actor: it ends after this round",
        f"Training {TRAINING} was stopped by its actor: the model has version 3",
    ]


def test_waiting_says_that_a_training_is_paused(server, messages):
    call = server.run(server.client.wait, TRAINING)
    _, rpc = server.stream("Subscribe")
    rpc.send_response(round_started(1, 0))
    server.reply("GetTraining", GetTrainingResponse(training=RUNNING))
    server.reply("GetRound", GetRoundResponse(round=Round(updates_arrived=0, updates_expected=1)))
    rpc.send_response(event(2, training_paused=event_pb2.TrainingPaused()))
    rpc.send_response(event(3, round_closed=RoundClosed(round=0, num_updates=1)))
    # Nothing is asked: the round is over.
    rpc.send_response(Event(training_id=TRAINING, sequence=3, heartbeat=event_pb2.Heartbeat(sequence=3)))
    rpc.send_response(event(4, training_resumed=event_pb2.TrainingResumed()))
    rpc.send_response(event(5, stop_requested=event_pb2.StopRequested()))
    rpc.send_response(event(6, training_finished=TrainingFinished(model_version=1, stopped=True)))
    server.reply("GetTraining", GetTrainingResponse(training=RUNNING))
    call.result(10)
    paused = "The training is paused by its actor: no further round opens until it is resumed"
    assert messages() == [
        "Round 1: waiting for participants",
        paused,
        "Round 1 is done with 1 submission",
        paused,
        "The training is resumed by its actor",
        "The training is stopped by its actor: it ends after this round",
    ]


def test_a_timeout_during_a_pause_says_why(server):
    call = server.run(server.client.wait, TRAINING, 5)
    _, rpc = server.stream("Subscribe")
    rpc.send_response(event(1, training_paused=event_pb2.TrainingPaused()))
    until(lambda: not rpc._rpc_state._responses)
    server.alarm_in(5)
    server.time.sleep_for(5)
    server.reply("GetTraining", GetTrainingResponse(training=PAUSED))
    waiting = "the actor: the training is paused, and the next round opens when it is resumed"
    server.reply("GetRound", GetRoundResponse(round=Round(state=ROUND_STATE_DONE, waiting_for=waiting)))
    with pytest.raises(
        TimeoutError, match=r"Round 1 is over; the training waits for the actor: the training is paused"
    ):
        call.result(10)


VALUES = {
    "true": True,
    "false": False,
    "True": "True",
    "3": 3,
    "-3": -3,
    "0.1": 0.1,
    ".5": 0.5,
    "1e-3": 0.001,
    "adam": "adam",
    "1_000": "1_000",
    "string:3": "3",
    "string:": "",
    "a:b": "a:b",
    "steps:0:0.1,30:0.01": StepSchedule(steps=[Step(round=0, value=0.1), Step(round=30, value=0.01)]),
    "exponential:0.1,0.5": ExponentialSchedule(start=0.1, factor=0.5, every=1),
    "exponential:0.1,0.5,10": ExponentialSchedule(start=0.1, factor=0.5, every=10),
    "exponential:0.1,0.5,10,0.001": ExponentialSchedule(start=0.1, factor=0.5, every=10, minimum=0.001),
    "cosine:0.1,0.001,50": CosineSchedule(start=0.1, end=0.001, rounds=50),
    "cosine:0.1,0.001,50,5": CosineSchedule(start=0.1, end=0.001, rounds=50, warmup_rounds=5),
}


@pytest.mark.parametrize("text", VALUES)
def test_values_are_parsed_by_their_look(text):
    (found,) = parse([f"name={text}"]).values()
    assert found == VALUES[text]
    assert type(found) is type(VALUES[text])


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63 - 1))
def test_numbers_are_parsed_as_python_writes_them(number):
    (found,) = parse([f"x={number!r}"]).values()
    assert (found, type(found)) == (number, type(number))


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["rate"], "is not NAME=VALUE"),
        (["=1"], "is not NAME=VALUE"),
        (["rate="], "an empty text is rate=string:"),
        (["rate=1", "rate=2"], "has two values"),
        (["rate=cosine:0.1,0.2"], "is not cosine:START,END,ROUNDS"),
        (["rate=cosine:a,b,c"], "is not cosine:START,END,ROUNDS"),
        (["rate=cosine:1,2,3,4,5"], "is not cosine:START,END,ROUNDS"),
        (["rate=steps:0.1,0.2"], "is not steps:ROUND:VALUE"),
        (["rate=steps:99999999999:1"], "is not steps:ROUND:VALUE"),
        (["rate=exponential:1"], "is not exponential:START,FACTOR"),
        (["rate=exponential:1,2,3,4,5"], "is not exponential:START,FACTOR"),
    ],
)
def test_what_is_no_value_is_a_wrong_command_line(texts, words):
    with pytest.raises(BadParameter, match=words):
        parse(texts)


def test_an_empty_value_removes_a_name():
    assert parse_changes(["epochs=", "rate=1"]) == {"epochs": None, "rate": 1}


def test_a_configuration_is_shown_as_it_is_written():
    texts = [
        text for text in VALUES if text not in ("True", ".5", "1e-3", "string:3", "string:", "exponential:0.1,0.5")
    ]
    config = values({text: option for text, option in VALUES.items() if text in texts})
    assert config_text(config) == ", ".join(f"{text} {text}" for text in sorted(texts))


COMMANDS = [
    ("stop", "StopTraining", StopTrainingResponse, {"when": "STOP_AFTER_ROUND"}),
    ("stop --now", "StopTraining", StopTrainingResponse, {"when": "STOP_NOW"}),
    ("pause", "PauseTraining", PauseTrainingResponse, {}),
    ("resume", "ResumeTraining", ResumeTrainingResponse, {}),
    (
        "config --config rate=0.5 --config epochs=",
        "UpdateConfig",
        UpdateConfigResponse,
        {"config": {"rate": {"double_value": 0.5}, "epochs": {}}},
    ),
    (
        f"config --client-config {USER}:rate=1 --client-config {USER}:epochs=",
        "UpdateConfig",
        UpdateConfigResponse,
        {"client_config": {USER: {"values": {"rate": {"int64_value": "1"}, "epochs": {}}}}},
    ),
]


@pytest.mark.parametrize(("line", "method", "response", "expected"), COMMANDS, ids=[one[0] for one in COMMANDS])
def test_commands_control_a_training(server, command, line, method, response, expected):
    word, *options = line.split()
    call = command("training", word, TRAINING, *options)
    request = server.reply(method, response(training=PAUSED))
    assert "ongoing, paused: `fedround training resume` has rounds opened again" in done(call).stdout
    sent = MessageToDict(request, preserving_proto_field_name=True)
    assert sent.pop("request_id")
    assert sent == {"training_id": TRAINING, **expected}


def test_a_training_is_created_with_the_options_of_a_configuration(server, command):
    site = GetUsersResponse(users=[User(user_id=USER, name="site 1")])
    line = f"training create --name digits --target-num-updates 50 --model-id {OTHER} --config rate=cosine:0.1,0.001,50"
    call = command(*line.split(), "--client", "site 1", "--client-config", "site 1:epochs=5")
    for _ in range(2):
        server.reply("GetUsers", site)
    rpc = server.upload("CreateTraining")
    spec = rpc.take_request().spec
    rpc.terminate(CreateTrainingResponse(training=RUNNING), *OK)
    done(call)
    schedule = Schedule(cosine=CosineSchedule(start=0.1, end=0.001, rounds=50))
    assert {**spec.config} == {"rate": ConfigValue(schedule=schedule)}
    assert {**spec.client_config} == {USER: Config(values={"epochs": ConfigValue(int64_value=5)})}
    assert list(spec.client_ids) == [USER]


def test_participants_are_configured_by_their_names(server, command):
    call = command("training", "config", TRAINING, "--client-config", "site 1:rate=0.5")
    server.reply("GetUsers", GetUsersResponse(users=[User(user_id=USER, name="site 1")]))
    own = {USER: Config(values={"rate": ConfigValue(double_value=0.5)})}
    spec = TrainingSpec(name="digits", config={"epochs": ConfigValue(int64_value=2)}, client_config=own)
    changed = Training(training_id=TRAINING, state=TRAINING_STATE_ONGOING, stopped=True, spec=spec)
    request = server.reply("UpdateConfig", UpdateConfigResponse(training=changed))
    server.reply("GetUsers", GetUsersResponse(users=[User(user_id=USER, name="site 1")]))
    out = done(call).stdout
    assert {**request.client_config} == own
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert {"config epochs 2", "client config site 1: rate 0.5", "state ongoing, stops after this round"} <= set(lines)


def test_a_training_that_was_stopped_is_shown_as_such(server, command):
    call = command("training", "show", TRAINING)
    ended = Training(training_id=TRAINING, state=TRAINING_STATE_COMPLETED, stopped=True)
    server.reply("GetTraining", GetTrainingResponse(training=ended))
    assert "completed: stopped by its actor" in done(call).stdout


def test_config_without_a_value_is_a_wrong_command_line(command):
    assert "give --config or --client-config" in done(command("training", "config", TRAINING), 2).stderr


def test_events_of_control_are_lines(server, command):
    call = command("training", "watch", TRAINING)
    _, rpc = server.stream("Subscribe")
    rpc.send_response(event(1, training_paused=event_pb2.TrainingPaused()))
    rpc.send_response(event(2, training_resumed=event_pb2.TrainingResumed()))
    rpc.send_response(event(3, config_updated=event_pb2.ConfigUpdated(from_round=1)))
    server.reply("GetTraining", GetTrainingResponse(training=RUNNING))
    rpc.send_response(event(4, stop_requested=event_pb2.StopRequested()))
    rpc.send_response(event(5, training_finished=TrainingFinished(model_id=OTHER, model_version=2, stopped=True)))
    assert [line.strip() for line in done(call, 5).stdout.splitlines()] == [
        "paused by its actor: no further round opens",
        "resumed by its actor",
        "the configuration is changed from round 2 on",
        "stopped by its actor: it ends after this round",
        f"stopped by its actor: version 2 of model {OTHER}",
    ]
