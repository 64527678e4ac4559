"""Asynchronous trainings with participants of different speed, against a real server."""

import threading
from collections import Counter
from typing import Any

import numpy as np

import fedround_client as fr
from e2e.federation import federation, plus_one
from fedround.v1.training_pb2 import TRAINING_STATE_COMPLETED
from servers import Server

MODEL = {"w": np.zeros(2, np.float32)}


def test_a_slow_participant_counts_in_a_later_version(server: Server) -> None:
    with federation(server, 3) as group:
        others, go_on = threading.Event(), threading.Event()
        rounds: list[int] = []

        def slow(model: Any, round_: fr.Round) -> tuple[Any, int]:
            rounds.append(round_.number)
            if round_.number == 0:
                assert go_on.wait(60)
                assert not round_.is_over()
            return plus_one(model, round_)

        def fast(model: Any, round_: fr.Round) -> tuple[Any, int]:
            if round_.number == 3:
                # The fourth version needs the slow one, which began with the first.
                others.set()
            return plus_one(model, round_)

        stages = fr.FedBuff(size=2, max_staleness=5, exponent=1)
        training = group.actor.create_training(
            MODEL, name="t", client_ids=group.ids, target_num_updates=4, aggregation=stages
        )

        def one_of_two(model: Any, round_: fr.Round) -> tuple[Any, int]:
            if round_.number == 3:
                assert go_on.wait(60)
                # Its update would close the round without the slow one's.
                while group.actor.get_round(training.training_id).updates_arrived < 2:
                    if group.actor.get_training(training.training_id).state == TRAINING_STATE_COMPLETED:
                        break
            return plus_one(model, round_)

        ends = [group.take_part(0, slow), group.take_part(1, fast), group.take_part(2, one_of_two)]
        group.actor.start_training(training.training_id)
        assert others.wait(60)
        go_on.set()
        for end in ends:
            end.result(60)
        found = group.actor.get_round(training.training_id, 3)
        assert sorted(one.report.staleness for one in found.participants if one.arrived) == [0, 3]
        assert rounds[0] == 0
        # Three versions of +1, and then the mean of +1 and +1 / 4.
        assert group.actor.download_model(training.model_id)["w"].tolist() == [3.625, 3.625]


def test_one_that_is_too_slow_goes_on_with_the_newest_version(server: Server) -> None:
    with federation(server, 3) as group:
        go_on, trained = threading.Event(), Counter[int]()
        training = group.actor.create_training(
            MODEL,
            name="t",
            client_ids=group.ids,
            target_num_updates=8,
            aggregation=fr.FedBuff(size=2, max_staleness=1),
        )

        def slow(model: Any, round_: fr.Round) -> tuple[Any, int]:
            trained[round_.number] += 1
            if round_.number == 0:
                assert go_on.wait(60)
            return plus_one(model, round_)

        def fast(model: Any, round_: fr.Round) -> tuple[Any, int]:
            if round_.number == 4:
                go_on.set()
                while len(trained) < 2:
                    assert not threading.Event().wait(0.01)
            return plus_one(model, round_)

        ends = [group.take_part(0, slow), group.take_part(1, fast), group.take_part(2, fast)]
        group.actor.start_training(training.training_id)
        results = [end.result(60) for end in ends]
        assert {result.model_version for result in results} == {8}
        assert list(trained)[:2] == [0, 4]
        rejected = group.actor.get_round(training.training_id, 4).rejected_updates
        assert [one.reason for one in rejected] == ["UPDATE_STALE"]


def test_an_update_that_is_made_during_a_pause_counts_after_it(server: Server) -> None:
    with federation(server, 2) as group:
        begun, go_on = threading.Event(), threading.Event()
        training = group.actor.create_training(
            MODEL, name="t", client_ids=group.ids, target_num_updates=2, aggregation=fr.FedAsync(alpha=0.5, exponent=1)
        )
        training_id, runs = training.training_id, Counter[int]()

        def slow(model: Any, round_: fr.Round) -> tuple[Any, int]:
            runs[round_.number] += 1
            begun.set()
            assert go_on.wait(60)
            return {"w": model["w"] + np.float32(8)}, 1

        def fast(model: Any, round_: fr.Round) -> tuple[Any, int]:
            assert begun.wait(60)
            if round_.number == 0:
                group.actor.pause_training(training_id)
                return {"w": model["w"] + np.float32(4)}, 1
            # The training ends before.
            while not round_.is_over():
                assert not threading.Event().wait(0.01)
            return plus_one(model, round_)

        ends = [group.take_part(0, slow), group.take_part(1, fast)]
        group.actor.start_training(training_id)
        while group.actor.get_training(training_id).model_version < 1:
            assert not threading.Event().wait(0.01)
        go_on.set()
        while not group.actor.get_round(training_id).rejected_updates:
            assert not threading.Event().wait(0.01)
        group.actor.resume_training(training_id)
        assert [end.result(60).rounds for end in ends] == [1, 1]
        assert runs == {0: 1}
        # 0.5 * 4, then 2 + 0.25 * (8 - 2).
        assert group.actor.download_model(training.model_id)["w"].tolist() == [3.5, 3.5]


def test_the_last_version_is_evaluated(server: Server) -> None:
    with federation(server, 2) as group:
        evaluated: list[int] = []

        def evaluate(model: Any, round_: fr.Round) -> tuple[dict[str, float], int]:
            evaluated.append(round_.model_version)
            return {"loss": float(model["w"][0])}, 1

        training = group.run(
            lambda _: (plus_one, evaluate),
            MODEL,
            target_num_updates=3,
            metric_names=["loss"],
            aggregation=fr.FedBuff(size=2, aggregation=fr.FedAdam(learning_rate=0.5)),
        )
        assert training.state == TRAINING_STATE_COMPLETED
        assert evaluated == [3, 3]
