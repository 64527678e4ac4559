"""Cohorts with the SDK against a real server: waiting for connections, over-selection, sampling."""

import logging
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest

import fedround_client as fr
from e2e.federation import federation, plus_one
from fedround.v1.round_pb2 import ROUND_STATE_PENDING
from servers import Server

State = dict[str, Any]


def test_who_comes_too_late_reads_it_and_goes_on(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    closed = threading.Event()

    def late(model: State, round_: fr.Round) -> tuple[State, int]:
        if round_.number == 0:
            assert closed.wait(100)
        return plus_one(model, round_)

    cohort = fr.Cohort(size=2, over_selection=1.5, min_available=3)
    with federation(server, 3) as group, caplog.at_level(logging.INFO, "fedround_client"):
        training = group.actor.create_training(
            {"w": np.zeros(2, np.float32)}, name="t", target_num_updates=1, client_ids=group.ids, cohort=cohort
        )
        training_id = training.training_id
        group.actor.start_training(training_id)
        pending = group.actor.get_round(training_id)
        assert (pending.state, pending.waiting_for) == (ROUND_STATE_PENDING, "participants: 0 of 3 connected")
        ends = [group.take_part(number, (plus_one, plus_one, late)[number]) for number in range(3)]
        assert group.actor.wait(training_id, 100).model_version == 1
        closed.set()
        assert [end.result(60).rounds for end in ends] == [1, 1, 0]
        members = {one.user_id: one for one in group.actor.get_round(training_id).participants}
    assert [members[user_id].rounds_left_out for user_id in group.ids] == [0, 0, 1]
    assert members[group.ids[0]].attributes["sdk"].startswith("fedround ")
    messages = [record.getMessage() for record in caplog.records]
    assert any("Round 1 of 1: came too late, 2 of 3 were enough" in message for message in messages)


def test_a_function_learns_that_its_round_is_over(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    learnt: list[int] = []

    def slow(model: State, round_: fr.Round) -> tuple[State, int]:
        deadline = time.monotonic() + 100
        while not round_.is_over() and time.monotonic() < deadline:
            time.sleep(0.05)
        learnt.append(round_.number)
        # What it returns is not sent: the server would reject it.
        return {"other": np.zeros(1)}, 1

    cohort = fr.Cohort(size=1, over_selection=2)
    with federation(server, 2) as group, caplog.at_level(logging.INFO, "fedround_client"):
        training = group.actor.create_training(
            {"w": np.zeros(2, np.float32)}, name="t", target_num_updates=2, client_ids=group.ids, cohort=cohort
        )
        group.actor.start_training(training.training_id)
        ends = [group.take_part(number, (plus_one, slow)[number]) for number in range(2)]
        assert group.actor.wait(training.training_id, 100).model_version == 2
        assert [end.result(60).rounds for end in ends] == [2, 0]
    assert learnt[0] == 0
    assert any("over, so nothing is sent" in record.getMessage() for record in caplog.records)


def test_a_fraction_of_the_participants_is_asked(server: Server) -> None:
    calls: Counter[int] = Counter()

    def counted(number: int) -> Any:
        def train(model: State, round_: fr.Round) -> tuple[State, int]:
            calls[round_.number] += 1
            return plus_one(model, round_)

        return (train,)

    with federation(server, 6) as group:
        cohort = fr.Cohort(fraction=1 / 3)
        training = group.run(counted, {"w": np.zeros(2, np.float32)}, target_num_updates=4, cohort=cohort)
        assert training.model_version == 4
        # Two of six in each round, and everybody reads the end.
        assert dict(calls) == dict.fromkeys(range(4), 2)
