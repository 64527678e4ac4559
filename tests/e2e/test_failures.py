"""One participant does not hold up the others: the SDK against a real server."""

from typing import Any

import numpy as np
import pytest

import fedround_client as fr
from calls import until
from e2e.federation import federation, plus_one
from fedround.v1.training_pb2 import TRAINING_STATE_COMPLETED, TRAINING_STATE_ERROR
from servers import Server

State = dict[str, Any]
MODEL = {"w": np.zeros(2, np.float32)}


def no_memory(model: State, round: fr.Round) -> tuple[State, int]:
    raise MemoryError("no memory left")


def diverged(model: State, round: fr.Round) -> tuple[State, int]:
    return {"w": model["w"] * np.float32(np.nan)}, 1


def other_names(model: State, round: fr.Round) -> tuple[State, int]:
    return {"module.w": model["w"]}, 1


def accuracy(model: State, round: fr.Round) -> tuple[dict[str, float], int]:
    return {"accuracy": 0.5}, 4


def no_data(model: State, round: fr.Round) -> tuple[dict[str, float], int]:
    raise FileNotFoundError("no test data")


def not_a_number(model: State, round: fr.Round) -> tuple[dict[str, float], int]:
    return {"accuracy": float("nan")}, 4


FAILING = [
    ((no_memory, accuracy), MemoryError, "TRAIN_FAILED"),
    ((diverged, accuracy), fr.UpdateNotFinite, "UPDATE_NOT_FINITE"),
    ((other_names, accuracy), fr.TensorsMismatch, "TENSORS_MISMATCH"),
    ((plus_one, no_data), FileNotFoundError, "EVALUATE_FAILED"),
    ((plus_one,), fr.UnsupportedRound, "UNSUPPORTED_ROUND"),
]


@pytest.mark.parametrize(("functions", "error", "reason"), FAILING, ids=[case[2] for case in FAILING])
def test_a_participant_that_fails_raises_and_the_others_finish(
    server: Server, functions: tuple[Any, ...], error: type[Exception], reason: str
) -> None:
    with federation(server, 2) as group:
        training = group.actor.create_training(
            MODEL, name="t", client_ids=group.ids, target_num_updates=2, metric_names=["accuracy"]
        )
        good, failing = group.take_part(0, plus_one, accuracy), group.take_part(1, *functions)
        group.actor.start_training(training.training_id)
        after = group.actor.wait(training.training_id, 60)
        assert isinstance(failing.exception(60), error)
        assert good.result(60).rounds == 4
        assert (after.state, after.model_version) == (TRAINING_STATE_COMPLETED, 2)
        events = list(group.actor.watch(training.training_id, resume_after=0))
        failed = [event.participant_failed for event in events if event.HasField("participant_failed")]
        assert {one.participant_id for one in failed} == {group.ids[1]}
        # It is gone after that, and no round waits for it.
        assert [one.reason for one in failed] == [reason, *(["ABSENT"] * (len(failed) - 1))]
        assert len(failed) == 4 - failed[0].round


def test_a_metric_that_is_no_number_and_zero_examples_are_answers(server: Server) -> None:
    def nothing(model: State, round: fr.Round) -> tuple[State, int]:
        return model, 0

    with federation(server, 2) as group:
        functions = [(plus_one, accuracy), (nothing, not_a_number)]
        training = group.run(lambda number: functions[number], MODEL, target_num_updates=1, metric_names=["accuracy"])
        assert training.state == TRAINING_STATE_COMPLETED
        assert group.actor.download_model(training.model_id)["w"].tolist() == [1, 1]
        reports = {(one.round, one.reporter_id): one for one in group.actor.metrics(training.model_id)}
        assert dict(reports[1, ""].metrics) == {"accuracy": 0.5}
        assert np.isnan(reports[1, group.ids[1]].metrics["accuracy"])


def test_when_all_fail_the_actor_reads_who_and_why(server: Server) -> None:
    with federation(server, 2) as group:
        training = group.actor.create_training(MODEL, name="t", client_ids=group.ids, target_num_updates=1)
        ends = [group.take_part(number, no_memory) for number in range(2)]
        group.actor.start_training(training.training_id)
        with pytest.raises(fr.TrainingFailed) as error:
            group.actor.wait(training.training_id, 60)
        assert error.value.reason == "PARTICIPANTS_FAILED"
        assert error.value.message.count("(TRAIN_FAILED: MemoryError: no memory left)") == 2
        for end in ends:
            assert isinstance(end.exception(60), (MemoryError, fr.TrainingFailed))
        assert group.actor.get_training(training.training_id).state == TRAINING_STATE_ERROR


def test_who_failed_may_start_again_in_the_same_round(server: Server) -> None:
    with federation(server, 2) as group:
        training = group.actor.create_training(MODEL, name="t", client_ids=group.ids, target_num_updates=1)
        group.actor.start_training(training.training_id)
        assert isinstance(group.take_part(0, no_memory).exception(60), MemoryError)
        found = group.actor.get_round(training.training_id)
        assert (found.num_failed, found.updates_expected) == (1, 1)
        again = group.take_part(0, plus_one)
        until(lambda: group.actor.get_round(training.training_id).updates_arrived == 1)
        found = group.actor.get_round(training.training_id)
        assert (found.num_failed, found.updates_expected) == (0, 2)
        other = group.take_part(1, plus_one)
        assert [end.result(60).rounds for end in (again, other)] == [1, 1]
