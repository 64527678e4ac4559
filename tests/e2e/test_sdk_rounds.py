"""Kinds of rounds against a real server: evaluation and early stopping, daisy chaining, SWAG."""

import logging
import threading
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

import fedround_client as fr
from e2e.federation import federation, plus_one
from fedround.v1.event_pb2 import ROUND_KIND_SWAG
from fedround.v1.training_pb2 import TRAINING_STATE_COMPLETED
from servers import Server

State = dict[str, Any]


SCORES = [0.0, 0.5, 0.9, 0.9, 0.6, 1.0]


def test_the_best_version_is_tagged_and_patience_ends_the_training_early(server: Server) -> None:
    def functions(number: int) -> tuple[Any, ...]:
        # The mean of the two, weighted 3 to 1, is the score.
        off = (1, -3)[number] / 16
        return plus_one, lambda model, round_: ({"score": SCORES[int(model["w"][0])] + off}, (3, 1)[number])

    with federation(server, 2) as group:
        training = group.run(
            functions,
            {"w": np.zeros(2, np.float32)},
            target_num_updates=10,
            metric_names=["score"],
            selection=fr.Selection("score", "MAXIMIZE", patience=2),
        )
        assert training.state == TRAINING_STATE_COMPLETED
        # Version 3 is as good as version 2, and of equals the first is the best.
        assert (training.model_version, training.best_version) == (4, 2)
        assert training.best_value == pytest.approx(0.9)
        versions = list(group.actor.model_versions(training.model_id))
        assert [(version.version, list(version.tags)) for version in versions] == [
            (4, ["last"]),
            (3, []),
            (2, ["best"]),
            (1, []),
            (0, []),
        ]
        assert [version.metrics["score"] for version in versions[:-1]] == pytest.approx([0.6, 0.9, 0.9, 0.5])
        assert group.actor.download_model(training.model_id, tag="best")["w"].tolist() == [2, 2]
        assert group.actor.download_model(training.model_id, tag="last")["w"].tolist() == [4, 4]
        with group.connect(0) as client:
            seen = [(report.reporter_id, report.num_examples) for report in client.metrics(training.model_id)]
        assert seen == [("", 4), (group.ids[0], 3)] * 4
        last = list(group.actor.watch(training.training_id, resume_after=0))[-1]
        assert last.training_finished.stopped_early


@pytest.mark.parametrize(("evaluation", "evaluated"), [("EVERY_ROUND", [1, 2, 3]), ("FINAL_ONLY", [3]), ("NEVER", [])])
def test_the_model_is_evaluated_when_the_actor_wants_it(server: Server, evaluation: Any, evaluated: list[int]) -> None:
    seen = []

    def evaluate(model: State, round_: fr.Round) -> tuple[dict[str, float], int]:
        seen.append(round_.model_version)
        return {"score": 1.0}, 1

    with federation(server, 1) as group:
        training = group.run(
            lambda number: (plus_one, evaluate),
            {"w": np.zeros(2, np.float32)},
            target_num_updates=3,
            metric_names=["score"],
            evaluation=evaluation,
        )
    assert seen == evaluated
    assert not training.HasField("best_version")


class Chain:
    """Who got which weights in which round of a chain, and who gave which."""

    def __init__(self) -> None:
        self.got: dict[int, dict[int, State]] = defaultdict(dict)
        self.gave: dict[int, dict[int, State]] = defaultdict(dict)
        self.asked: dict[int, set[tuple[bool, int, int]]] = defaultdict(set)

    def functions(self, number: int) -> tuple[Any, ...]:
        def train(model: State, round_: fr.Round) -> tuple[State, int]:
            self.asked[round_.number].add((round_.assigned, round_.local_rounds, round_.model_version))
            self.got[round_.number][number] = {"w": model["w"].copy()}
            # Weights that encode who trained them, when, and how often they were trained before.
            trained = {"w": np.float32([number, round_.number, model["w"][2] + 1])}
            self.gave[round_.number][number] = trained
            return trained, number + 1

        return (train,)

    def sources(self, round_number: int) -> dict[int, int]:
        """For each participant, whose model of the round before it was handed."""
        return {
            number: source
            for number, got in self.got[round_number].items()
            for source, gave in self.gave[round_number - 1].items()
            if np.array_equal(got["w"], gave["w"])
        }


def test_daisy_chaining_hands_models_on_and_averages_at_last(server: Server) -> None:
    start = {"w": np.zeros(3, np.float32)}
    fed_dc = fr.FedDc(daisy_period=2, aggregation_period=6, seed=5)
    with federation(server, 3) as group:
        chains = (Chain(), Chain())
        for chain in chains:
            training = group.run(chain.functions, start, target_num_updates=2, aggregation=fed_dc)
            assert (training.model_version, training.round) == (2, 5)
        for version, first in ((0, 0), (1, 3)):
            assert chain.asked[first] == {(False, 2, version)}
            assert chain.asked[first + 1] == chain.asked[first + 2] == {(True, 2, version)}
            for number in (first + 1, first + 2):
                sources = chain.sources(number)
                assert sorted(sources) == sorted(sources.values()) == [0, 1, 2]
                assert all(number != source for number, source in sources.items())
                # With the same seed and participants, the cards fall as before.
                assert chains[0].sources(number) == sources
            sent = chain.gave[first + 2]
            mean = sum((number + 1) * sent[number]["w"].astype(np.float64) for number in range(3)) / 6
            stored = group.actor.download_model(training.model_id, version + 1)["w"]
            np.testing.assert_allclose(stored, mean, rtol=1e-6)

        # Each participant can read what it was assigned, and no other user can.
        for number in range(3):
            with group.connect(number) as client:
                assigned = client.download_assigned_model(training.training_id, 1)
                assert np.array_equal(assigned["w"], chain.got[1][number]["w"])
                with pytest.raises(fr.NotInCohort):
                    client.download_assigned_model(training.training_id, 3)
        with pytest.raises(fr.TrainingNotFound):
            group.actor.download_assigned_model(training.training_id, 1)
        with federation(server, 1) as others, others.connect(0) as unrelated, pytest.raises(fr.TrainingNotFound):
            unrelated.download_assigned_model(training.training_id, 1)


def test_a_member_that_misses_a_round_is_out_of_the_chain_until_the_next_average(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    slow, closed = threading.Event(), threading.Event()
    seen = []

    def late(model: State, round_: fr.Round) -> tuple[State, int]:
        seen.append(round_.number)
        if round_.number == 0:
            slow.set()
            assert closed.wait(100)
        return plus_one(model, round_)

    def punctual(model: State, round_: fr.Round) -> tuple[State, int]:
        assert slow.wait(100)
        return plus_one(model, round_)

    with federation(server, 3) as group, caplog.at_level(logging.WARNING, "fedround_client"):
        training = group.actor.create_training(
            {"w": np.zeros(2, np.float32)},
            name="t",
            target_num_updates=2,
            client_ids=group.ids,
            aggregation=fr.FedDc(daisy_period=1, aggregation_period=2),
            min_updates=2,
        )
        ends = [group.take_part(number, (punctual, punctual, late)[number]) for number in range(3)]
        group.actor.start_training(training.training_id)
        for event in group.actor.watch(training.training_id):
            if event.HasField("round_closed") and event.round_closed.model_version == 1:
                closed.set()
        assert [end.result(60).model_version for end in ends] == [2, 2, 2]
        cohorts = [
            {member.user_id for member in group.actor.get_round(training.training_id, number).participants}
            for number in range(3)
        ]
        assert cohorts == [set(group.ids), set(group.ids[:2]), set(group.ids)]
    assert seen[0] == 0
    assert 1 not in seen
    assert any(
        "Round 1" in record.getMessage() and "ROUND_NOT_OPEN" in record.getMessage() for record in caplog.records
    )


def snapshots_of(number: int) -> list[State]:
    """What the weights of a participant are along its round of SWAG."""
    rng = np.random.default_rng(number)
    return [
        {
            "w": (100 + rng.normal(size=(2, 3))).astype(np.float32),
            "b": np.asarray(rng.normal()),
            "steps": np.array(step),
        }
        for step in range(5 + number)
    ]


def test_a_posterior_is_made_of_the_moments_of_all(server: Server) -> None:
    start = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(()), "steps": np.array(0)}
    rank, counts = 2, (10, 20, 30)
    trained: list[State] = []

    def functions(number: int) -> tuple[Any, ...]:
        def train(model: State, round_: fr.Round) -> tuple[State, int]:
            if round_.kind == "TRAIN":
                return model, counts[number]
            # The last participant has no swag function: each call makes one sample.
            trained.append(snapshots_of(number + len(trained))[0])
            return trained[-1], counts[number]

        def swag(model: State, round_: fr.Round) -> tuple[State, int]:
            moments = fr.Moments(round_.swag_rank)
            for snapshot in snapshots_of(number):
                moments.add(snapshot)
            return moments.update(), counts[number]

        return (train, None, swag) if number < 2 else (train,)

    with federation(server, 3) as group:
        training = group.run(functions, start, target_num_updates=3, uncertainty=fr.Swag(every=2, rank=rank))
        kinds = [
            event.round_started.kind == ROUND_KIND_SWAG
            for event in group.actor.watch(training.training_id, resume_after=0)
            if event.HasField("round_started")
        ]
        assert kinds == [False, False, True, False, True]
        ranks = [version.posterior.rank for version in group.actor.model_versions(training.model_id)]
        assert ranks == [rank * 3, rank * 3, 0, 0]
        with pytest.raises(fr.ModelNotFound, match="SWAG posterior"):
            group.actor.download_model(training.model_id, 1, part="POSTERIOR")
        posterior = group.actor.download_model(training.model_id, part="POSTERIOR")
        order = sorted(range(3), key=lambda number: group.ids[number])

    assert len(trained) == 20
    samples = [snapshots_of(0), snapshots_of(1), trained[-10:]]
    weights = np.array(counts) / sum(counts)
    assert len(posterior) == 2 * (2 + rank * 3)
    for name in ("w", "b"):
        values = [np.stack([np.float64(snapshot[name]) for snapshot in own]) for own in samples]
        mean = sum(weight * own.mean(0) for weight, own in zip(weights, values, strict=True))
        second = sum(weight * (own**2).mean(0) for weight, own in zip(weights, values, strict=True))
        np.testing.assert_allclose(posterior[f"mean/{name}"], mean, rtol=1e-14)
        np.testing.assert_allclose(posterior[f"second/{name}"], second, rtol=1e-14)
        columns = [
            np.sqrt(weights[number] / (rank - 1)) * (values[number][end - 1] - values[number][:end].mean(0))
            for number in order
            for end in range(len(values[number]) - rank + 1, len(values[number]) + 1)
        ]
        for column, expected in enumerate(columns):
            found = posterior[f"deviation/{column}/{name}"]
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_who_misses_a_deadline_comes_into_the_round_when_it_is_repeated(server: Server) -> None:
    extended = threading.Event()
    trained: dict[int, list[int]] = {0: [], 1: []}

    def punctual(model: State, round_: fr.Round) -> tuple[State, int]:
        trained[0].append(round_.number)
        return {"w": model["w"] + np.float32(1)}, 3

    def late(model: State, round_: fr.Round) -> tuple[State, int]:
        trained[1].append(round_.number)
        assert extended.wait(100)
        return {"w": model["w"] + np.float32(5)}, 1

    with federation(server, 2) as group:
        training = group.actor.create_training(
            {"w": np.zeros(2, np.float32)},
            name="t",
            target_num_updates=2,
            client_ids=group.ids,
            deadline=0.5,
            max_retries=1000,
        )
        ends = [group.take_part(number, (punctual, late)[number]) for number in range(2)]
        group.actor.start_training(training.training_id)
        closed = []
        for event in group.actor.watch(training.training_id, resume_after=0):
            if event.HasField("round_extended") and event.round_extended.updates_arrived == 1:
                extended.set()
            if event.HasField("round_closed"):
                closed.append(event.round_closed.num_updates)
        assert [end.result(60).rounds for end in ends] == [2, 2]
        # The update of the first try counted once, with its weight, and no client trained twice.
        assert closed == [2, 2]
        assert trained == {0: [0, 1], 1: [0, 1]}
        assert group.actor.download_model(training.model_id, 1)["w"].tolist() == [2, 2]


@pytest.mark.parametrize(("precision", "loss"), [("FLOAT16", 2**-10), ("BFLOAT16", 2**-7)])
def test_updates_in_half_precision_are_half_as_large_and_learn_the_same(
    tmp_path_factory: pytest.TempPathFactory, precision: str, loss: float
) -> None:
    """Steps towards the clients' own targets, whose mean is learned."""
    targets = np.random.default_rng(3).standard_normal((2, 5000)).astype(np.float32)

    def functions(number: int) -> tuple[Any, ...]:
        def train(model: State, round_: fr.Round) -> tuple[State, int]:
            model["w"] += (targets[number] - model["w"]) / 2
            return model, 1

        return (train,)

    folder = tmp_path_factory.mktemp("halves") / "data"
    with Server(folder) as server, federation(server, 2) as group:
        training = group.run(
            functions, {"w": np.zeros(5000, np.float32)}, target_num_updates=12, update_precision=precision
        )
        assert training.state == TRAINING_STATE_COMPLETED
        learned = group.actor.download_model(training.model_id)["w"]
    sizes = sorted(path.stat().st_size for path in folder.glob("objects/*/*"))
    # 24 updates, and 13 versions of the model.
    assert [size // 10_000 for size in sizes] == [1] * 24 + [2] * 13
    exact = targets.astype(np.float64).mean(0) * (1 - 2.0**-12)
    # The clients' steps are as far apart as their targets are, and each is rounded.
    assert np.abs(learned - exact).max() < loss * np.abs(targets).max()
