"""Every kind of round survives `kill -9` of the server: daisy chains, averages, evaluations and SWAG moments."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedround_client as fr
from e2e.killer import Killer, with_and_without
from fedround.v1.event_pb2 import RoundKind
from servers import Server
from sizes import size

PARTICIPANTS = 3
TARGET = 2
SHAPE = (50_000,)
# Each update of the global model takes a round that is assigned, one that is averaged, an evaluation, and moments.
KINDS = ["TRAIN", "TRAIN", "EVALUATE", "SWAG"] * TARGET
# One before each kind of round, or more.
KILLS = size("ROUND_KILLS", 2)


@dataclass(frozen=True)
class Outcome:
    """What must be the same however often the server was killed."""

    models: list[str]
    posteriors: list[str]
    metrics: list[dict[str, float]]
    best: int
    kinds: list[str]
    counted: list[int]


class Participant:
    """Its work depends on what it gets, the round and its number alone. It lets some kills come before each round."""

    def __init__(self, number: int, killer: Killer | None) -> None:
        self._number = number
        self._killer = killer

    def _begin(self, round: fr.Round) -> np.random.Generator:
        if self._killer is not None:
            self._killer.wait_for(min(KILLS, round.number + 1))
        return np.random.default_rng((self._number, round.number))

    def train(self, model: dict[str, np.ndarray], round: fr.Round) -> fr.Update:
        noise = self._begin(round).standard_normal(SHAPE).astype(np.float32)
        return fr.Update({"weight": model["weight"] * np.float32(0.9) + noise}, self._number + 1)

    def evaluate(self, model: dict[str, np.ndarray], round: fr.Round) -> tuple[dict[str, float], int]:
        self._begin(round)
        return {"size": float(np.abs(model["weight"]).mean()) + self._number}, self._number + 1

    def swag(self, model: dict[str, np.ndarray], round: fr.Round) -> fr.Update:
        rng, moments = self._begin(round), fr.Moments(round.swag_rank)
        for _ in range(3):
            moments.add({"weight": model["weight"] + rng.standard_normal(SHAPE).astype(np.float32)})
        return fr.Update(moments.update(), self._number + 1)


def prepare(data_dir: Path, database: str) -> tuple[str, list[str]]:
    with (
        Server(data_dir, database=database) as server,
        fr.connect(server.address, server.admin_token) as admin,
    ):
        _, actor_token = admin.create_user("actor", role="ACTOR")
        made = [admin.create_user(f"client {number}") for number in range(PARTICIPANTS)]
        with fr.connect(server.address, actor_token) as actor:
            training = actor.create_training(
                {"weight": np.zeros(SHAPE, np.float32)},
                name="survivor",
                target_num_updates=TARGET,
                client_ids=[user.user_id for user, _ in made],
                aggregation=fr.FedDc(aggregation_period=2, seed=5),
                metric_names=["size"],
                selection=fr.Selection("size", "MINIMIZE"),
                uncertainty=fr.Swag(every=1, rank=2),
            )
    return training.training_id, [actor_token, *(token for _, token in made)]


def run(server: Server, training_id: str, tokens: list[str], killer: Killer | None) -> Outcome:
    # Clients are closed before the threads are waited for: whatever fails here, no participant goes on trying.
    with ThreadPoolExecutor(PARTICIPANTS) as pool, ExitStack() as stack:
        actor, *clients = [stack.enter_context(fr.connect(server.address, token)) for token in tokens]
        actor.start_training(training_id)
        ends = []
        for number, client in enumerate(clients):
            one = Participant(number, killer)
            ends.append(
                pool.submit(client.participate, one.train, one.evaluate, swag=one.swag, training_id=training_id)
            )
        if killer is not None:
            with killer:
                killer.run(KILLS)
        training = actor.wait(training_id, timeout=200 + 10 * KILLS)
        assert [end.result().rounds for end in ends] == [len(KINDS)] * PARTICIPANTS
        events = list(actor.watch(training_id, resume_after=0))
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        closed = [event.round_closed for event in events if event.HasField("round_closed")]
        return Outcome(
            models=[digest(actor, training.model_id, version, "MODEL") for version in range(TARGET + 1)],
            posteriors=[digest(actor, training.model_id, version, "POSTERIOR") for version in range(1, TARGET + 1)],
            metrics=[dict(one.metrics) for one in closed],
            best=training.best_version,
            kinds=[RoundKind.Name(one.kind) for one in closed],
            counted=[one.num_updates for one in closed],
        )


def digest(actor: fr.Client, model_id: str, version: int, part: Any) -> str:
    arrays = actor.download_model(model_id, version, part=part)
    return hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest()


@pytest.mark.attack
@pytest.mark.timeout(300 + 20 * KILLS)
@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.chaos)], indirect=True)
@pytest.mark.chaos
def test_every_kind_of_round_survives_kills_with_the_same_bits(
    tmp_path: Path, database: str, copied: Callable[[], str]
) -> None:
    expected, survived = with_and_without(KILLS, 11, tmp_path, database, copied, prepare, run)

    assert expected.kinds == [f"ROUND_KIND_{kind}" for kind in KINDS]
    assert expected.counted == [PARTICIPANTS] * len(KINDS)
    assert len(set(expected.models + expected.posteriors)) == 2 * TARGET + 1
    assert survived == expected
