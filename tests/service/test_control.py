"""Stopping, pausing and resuming trainings, and changing their configuration, by raw calls."""

import math
from pathlib import Path
from typing import Any

import grpc
import pytest

from calls import Person, fails_with, kinds, model_file, new_id, until
from fedround.v1 import control_pb2, round_pb2, training_pb2
from fedround.v1.config_pb2 import Config, ConfigValue
from servers import Server

COMPLETED, ONGOING = training_pb2.TRAINING_STATE_COMPLETED, training_pb2.TRAINING_STATE_ONGOING


def number(value: float) -> ConfigValue:
    return ConfigValue(double_value=value)


def change(person: Person, what: str, training_id: str, **fields: Any) -> training_pb2.Training:
    request = getattr(control_pb2, f"{what}Request")(training_id=training_id, **fields)
    return getattr(person.control, what)(request).training


def running(actor: Person, clients: list[Person], **spec: Any) -> str:
    ids = [client.user_id for client in clients]
    made = actor.create(client_ids=ids, **{"target_num_updates": 3, **spec})
    return actor.start(made.training_id).training_id


def get_round(actor: Person, training_id: str) -> round_pb2.Round:
    return actor.rounds.GetRound(round_pb2.GetRoundRequest(training_id=training_id)).round


def test_a_training_is_paused_changed_resumed_and_stopped(actor: Person, clients: list[Person]) -> None:
    training_id = running(actor, clients[:2], config={"rate": number(0.5)})
    events = clients[0].subscribe(training_id)
    assert next(events).round_started.config["rate"] == number(0.5)
    paused = change(actor, "PauseTraining", training_id)
    assert (paused.paused, paused.stopped, paused.state) == (True, False, ONGOING)
    assert get_round(actor, training_id).waiting_for.endswith("the training is paused: no further round opens")
    for index, client in enumerate(clients[:2]):
        client.submit(training_id, model_file(index))
    assert kinds(events.next(2)) == ["training_paused", "round_closed"]
    waiting = get_round(actor, training_id)
    assert waiting.state == round_pb2.ROUND_STATE_DONE
    assert waiting.waiting_for.startswith("the actor: the training is paused")
    own = {clients[0].user_id: Config(values={"epochs": ConfigValue(int64_value=2)})}
    changed = change(actor, "UpdateConfig", training_id, config={"rate": number(0.25)}, client_config=own)
    assert changed.spec.config["rate"] == number(0.25)
    assert change(actor, "ResumeTraining", training_id).round == 1
    resumed, started = events.next(2)
    assert resumed.HasField("training_resumed")
    assert {**started.round_started.config} == {"rate": number(0.25), "epochs": ConfigValue(int64_value=2)}
    assert {**next(clients[1].subscribe(training_id)).round_started.config} == {"rate": number(0.25)}
    assert {**next(actor.subscribe(training_id)).round_started.config} == {"rate": number(0.25)}
    stopping = change(actor, "StopTraining", training_id)
    assert (stopping.stopped, stopping.state) == (True, ONGOING)
    assert get_round(actor, training_id).waiting_for.endswith("the training stops after this round")
    for index, client in enumerate(clients[:2]):
        client.submit(training_id, model_file(index + 5), 1)
    rest = list(events)
    assert kinds(rest) == ["stop_requested", "round_closed", "training_finished"]
    finished = rest[-1].training_finished
    assert (finished.model_version, finished.stopped, finished.stopped_early) == (2, True, False)
    ended = actor.get(training_id)
    assert (ended.state, ended.stopped, ended.model_version) == (COMPLETED, True, 2)
    log = list(actor.subscribe(training_id, resume_after_sequence={training_id: 0}))
    assert "config_updated" in kinds(log)


def test_a_training_is_stopped_at_once(actor: Person, clients: list[Person]) -> None:
    training_id = running(actor, clients[:2])
    clients[0].submit(training_id, model_file(1))
    request = new_id()
    for _ in range(2):
        ended = change(actor, "StopTraining", training_id, when=control_pb2.STOP_NOW, request_id=request)
        assert (ended.state, ended.stopped, ended.model_version) == (COMPLETED, True, 0)
    found = get_round(actor, training_id)
    assert found.state == round_pb2.ROUND_STATE_ABANDONED
    assert found.waiting_for == "nothing: the training was stopped by its actor"
    with fails_with("FAILED_PRECONDITION", "ROUND_NOT_OPEN", "is ABANDONED"):
        clients[1].submit(training_id, model_file(2))


def test_what_does_not_fit_the_state(actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=[clients[0].user_id])
    for what in ("StopTraining", "PauseTraining", "ResumeTraining"):
        with fails_with("FAILED_PRECONDITION", "TRAINING_NOT_RUNNING", "is INITIAL"):
            change(actor, what, made.training_id)
    assert actor.get(made.training_id) == made
    actor.start(made.training_id)
    with fails_with("FAILED_PRECONDITION", "TRAINING_NOT_PAUSED"):
        change(actor, "ResumeTraining", made.training_id)
    request = new_id()
    change(actor, "PauseTraining", made.training_id, request_id=request)
    before = actor.get(made.training_id)
    with fails_with("FAILED_PRECONDITION", "TRAINING_PAUSED"):
        change(actor, "PauseTraining", made.training_id)
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "request_id: was used before, to pause: use a new one"):
        change(actor, "StopTraining", made.training_id, request_id=request)
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "when: is 7; known are STOP_UNSPECIFIED, STOP_AFTER_ROUND"):
        change(actor, "StopTraining", made.training_id, when=7)
    assert actor.get(made.training_id) == before
    change(actor, "StopTraining", made.training_id, when=control_pb2.STOP_NOW)
    for what in ("StopTraining", "PauseTraining", "ResumeTraining"):
        with fails_with("FAILED_PRECONDITION", "TRAINING_NOT_RUNNING", "is COMPLETED"):
            change(actor, what, made.training_id)
    with fails_with("FAILED_PRECONDITION", "TRAINING_NOT_RUNNING", "is COMPLETED"):
        change(actor, "UpdateConfig", made.training_id, config={"rate": number(0.5)})


LONG = "x" * 101
INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "no value": ({"rate": {}}, '["rate"]: has no value'),
    "NaN": ({"rate": {"double_value": math.nan}}, '["rate"].double_value: is nan'),
    "a long name": ({LONG: {"bool_value": True}}, ": has 101 characters; at most 100 are allowed"),
    "no name": ({"": {"bool_value": True}}, ": is required: 1 to 100 characters"),
    "a long text": ({"a": {"string_value": "x" * 1001}}, '["a"].string_value: has 1001 characters; at most 1000'),
    "too many values": ({str(n): {"bool_value": True} for n in range(101)}, ": has 101 values; at most 100"),
    "no schedule": ({"a": {"schedule": {}}}, '["a"].schedule: has no kind'),
    "no steps": ({"a": {"schedule": {"steps": {}}}}, '["a"].schedule.steps.steps: has 0 steps'),
    "a negative round": (
        {"a": {"schedule": {"steps": {"steps": [{"round": -1}]}}}},
        '["a"].schedule.steps.steps[0].round: is -1; must be 0',
    ),
    "a cosine over negative rounds": (
        {"a": {"schedule": {"cosine": {"start": 1.0, "rounds": -5}}}},
        '["a"].schedule.cosine.rounds: is -5; must be >= 1',
    ),
    "a factor of NaN": (
        {"a": {"schedule": {"exponential": {"start": 1.0, "factor": math.nan}}}},
        '["a"].schedule.exponential.factor: is nan',
    ),
}


@pytest.mark.parametrize("what", INVALID)
def test_configurations_that_are_not_valid(actor: Person, clients: list[Person], what: str) -> None:
    values, words = INVALID[what]
    user_id = clients[0].user_id
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", f"spec.config{words}"):
        actor.create(client_ids=[user_id], config=values)
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", f'spec.client_config["{user_id}"].values{words}'):
        actor.create(client_ids=[user_id], client_config={user_id: {"values": values}})
    made = actor.create(client_ids=[user_id])
    if what == "no value":
        # Removes what is not there.
        assert change(actor, "UpdateConfig", made.training_id, config={"rate": ConfigValue()}).spec == made.spec
        return
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", f"config{words}"):
        change(actor, "UpdateConfig", made.training_id, config=values)
    assert actor.get(made.training_id) == made


def test_configurations_of_strangers(actor: Person, clients: list[Person]) -> None:
    own = {clients[1].user_id: Config(values={"rate": number(0.1)})}
    with fails_with("INVALID_ARGUMENT", "UNKNOWN_CLIENTS", "spec.client_config: not among spec.client_ids"):
        actor.create(client_ids=[clients[0].user_id], client_config=own)
    made = actor.create(client_ids=[clients[0].user_id])
    with fails_with("INVALID_ARGUMENT", "UNKNOWN_CLIENTS", "client_config: not participants of the training"):
        change(actor, "UpdateConfig", made.training_id, client_config=own)
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "client_config: 'nobody' is not a UUID"):
        change(actor, "UpdateConfig", made.training_id, client_config={"nobody": Config()})
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "config: is empty, and so is client_config"):
        change(actor, "UpdateConfig", made.training_id)
    user_id = clients[0].user_id
    twice = {user_id: Config(), user_id.upper(): Config()}
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", f"client_config: names {user_id} twice"):
        change(actor, "UpdateConfig", made.training_id, client_config=twice)
    assert actor.get(made.training_id) == made


def test_who_sees_a_configuration(actor: Person, clients: list[Person]) -> None:
    ids = [client.user_id for client in clients]
    own = {user_id: Config(values={"site": ConfigValue(string_value=user_id)}) for user_id in ids[:2]}
    made = actor.create(client_ids=ids, config={"rate": number(0.1)}, client_config=own)
    assert {**made.spec.client_config} == own
    assert actor.get(made.training_id) == made
    seen = clients[0].get(made.training_id).spec
    assert ({**seen.config}, {**seen.client_config}) == ({"rate": number(0.1)}, {})
    (listed,) = actor.trainings.GetTrainings(training_pb2.GetTrainingsRequest()).trainings
    assert (len(listed.spec.config), len(listed.spec.client_config)) == (0, 0)
    actor.start(made.training_id)
    for client in clients:
        log = client.subscribe(made.training_id, resume_after_sequence={made.training_id: 0}).next(2)
        expected = {"rate": number(0.1)}
        if client is not clients[2]:
            expected["site"] = ConfigValue(string_value=client.user_id)
        assert {**log[1].round_started.config} == expected
        assert not any(other in str(log) for other in set(ids) - {client.user_id})


def test_a_configuration_of_10_000_participants_fits_into_an_answer(actor: Person, admin: Person) -> None:
    ids = [new_id() for _ in range(10_000)]
    own = {user_id: Config(values={"learning_rate": number(0.1)}) for user_id in ids}
    # They are no users: what is rejected last shows that all else was accepted.
    with fails_with("INVALID_ARGUMENT", "UNKNOWN_CLIENTS", "client_ids: no such users"):
        actor.create(client_ids=ids, client_config=own)
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "spec.config: has ", "at most 1048576"):
        actor.create(client_ids=ids, client_config=dict.fromkeys(ids, Config(values={"text" * 20: number(0.1)})))


@pytest.mark.chaos
def test_control_lasts_across_kills_of_the_server(tmp_path: Path) -> None:
    requests = {what: new_id() for what in ("PauseTraining", "UpdateConfig", "ResumeTraining", "StopTraining")}

    def again(server: Server, token: str, what: str, **fields: Any) -> training_pb2.Training:
        """Makes a change, and once more after a kill, as a caller does that got no answer."""
        answers = []
        for _ in range(2):
            with grpc.insecure_channel(server.address) as channel:
                answers.append(change(Person(channel, token), what, training_id, request_id=requests[what], **fields))
            server.kill()
            server.start()
        assert answers[0] == answers[1]
        return answers[0]

    with Server(tmp_path / "data") as server:
        with grpc.insecure_channel(server.address) as channel:
            admin = Person(channel, server.admin_token)
            client = admin.make(server.address, "CLIENT")
            training_id = running(admin, [client], config={"rate": number(0.5)})
        token = server.admin_token
        assert again(server, token, "PauseTraining").paused
        client.submit(training_id, model_file(1))
        until(lambda: client.get(training_id).model_version == 1)
        again(server, token, "UpdateConfig", config={"rate": number(0.25)})
        assert again(server, token, "ResumeTraining").round == 1
        started = next(client.subscribe(training_id)).round_started
        assert (started.round, {**started.config}) == (1, {"rate": number(0.25)})
        assert not again(server, token, "StopTraining").paused
        client.submit(training_id, model_file(2), 1)
        events = list(client.subscribe(training_id, resume_after_sequence={training_id: 0}))
        assert kinds(events) == [
            "training_started",
            "round_started",
            "training_paused",
            "round_closed",
            "training_resumed",
            "round_started",
            "stop_requested",
            "round_closed",
            "training_finished",
        ]
        client.channel.close()
