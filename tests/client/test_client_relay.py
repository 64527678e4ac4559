"""How a relay names what it makes at its own server, and what it reads of a sum."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import grpc
import pytest

from client.rounds import Rounds, finished
from client.scripted import OTHER, USER, Server, until
from client.scripted import TRAINING as SCRIPTED
from fedround.v1.event_pb2 import Event, RoundStarted, TrainingRemoved
from fedround.v1.training_pb2 import TRAINING_STATE_INITIAL, Training, TrainingSpec
from fedround.v1.user_pb2 import ROLE_ACTOR, ROLE_ADMIN, ROLE_VIEWER, GetMyselfResponse, Role, User
from fedround_client.errors import FieldInvalid, RoleRequired
from fedround_client.relay_round import RelayOptions, RelayRound
from fedround_client.relay_trainings import RelayTrainings, _read_counts

pytestmark = pytest.mark.timeout(30)
TRAINING = "11111111-1111-4111-8111-111111111111"


def round_of(number: int, attempt: int = 0) -> RelayRound:
    started = RoundStarted(round=number, attempt=attempt)
    return RelayRound(TRAINING, TrainingSpec(), started, None, lambda: False)  # type: ignore[arg-type]


def invalid(field: str) -> FieldInvalid:
    return FieldInvalid(grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", "", None, {field: "is wrong"})


def creating(*answers: Training | FieldInvalid) -> tuple[Mock, Callable[[], Training]]:
    """Creates the training of a round's third attempt, at a server that answers so."""
    trainings = RelayTrainings(Mock(), RelayOptions())
    create = Mock(side_effect=answers)
    trainings._create = create  # type: ignore[method-assign]
    return create, lambda: trainings._created(round_of(0, attempt=3), Path(), ["a user"])


def test_a_training_that_was_removed_is_created_under_another_id() -> None:
    made = Training(state=TRAINING_STATE_INITIAL)
    create, created = creating(invalid("request_id"), made)
    assert created() is made
    assert create.call_count == 2


def test_a_model_that_is_refused_is_sent_once() -> None:
    create, created = creating(invalid("spec.model"), Training())
    with pytest.raises(FieldInvalid):
        created()
    assert create.call_count == 1


def test_the_request_of_a_round_is_always_the_same() -> None:
    # As an earlier version of the SDK has made it: a relay that is updated in a round finds its training.
    assert round_of(3).request_id(0) == "bf806d0f-ec61-573e-b6dd-34132113bcf6"
    ids = {round_of(number).request_id(attempt) for number in range(3) for attempt in range(3)}
    assert len(ids) == 9
    assert round_of(3).name == f"relay of {TRAINING}, round 4"


@pytest.mark.parametrize(("field", "value"), [("min_updates", 0), ("margin", -1.0)])
def test_an_option_out_of_range(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be at least"):
        RelayOptions(**{field: value})  # type: ignore[arg-type]


def test_counts_are_read_from_the_metadata(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"num_examples": str(2**53), "num_updates": "7"}}).encode()
    path = tmp_path / "sum.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert _read_counts(path) == {"num_examples": 2**53, "num_updates": 7}


@pytest.mark.parametrize("role", [ROLE_ACTOR, ROLE_ADMIN, ROLE_VIEWER])
def test_a_relay_is_a_client_of_its_parent(server: Server, role: Role) -> None:
    own = Mock()
    own.users.return_value = iter([])
    call = server.run(server.client.relay, own)
    server.reply("GetMyself", GetMyselfResponse(user=User(user_id=USER, name="lab", role=role)))
    with pytest.raises(RoleRequired, match=r'"lab" does not have the role CLIENT at the parent.*FEDROUND_PARENT_TOKEN'):
        call.result(10)


def test_participants_are_not_warned_of_the_removal_of_a_finished_training(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rounds = Rounds(server, training_id=None, until_finished=False)
    removed = TrainingRemoved()
    rounds.send(finished(1))
    rounds.send(Event(training_id=SCRIPTED, sequence=2, training_removed=removed))
    rounds.send(Event(training_id=OTHER, sequence=1, training_removed=removed))
    until(lambda: "has ended" in caplog.text)
    assert [one.levelname for one in caplog.records if "has ended" in one.message] == ["WARNING"]
    assert f"participation in training {OTHER} has ended" in caplog.text
