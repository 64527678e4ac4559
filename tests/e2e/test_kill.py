"""A training survives `kill -9` of its server at any moment, and ends with the bits that it would have had anyway."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import fedround_client as fr
from e2e.killer import Killer, with_and_without
from fedround.v1 import training_pb2
from servers import Server
from sizes import size

ROUNDS = 3
KILLS = size("ROUND_KILLS", 1)
SHAPE = (200_000,)
# A round's updates wait for so many kills, which are so spread over the whole training.
KILLS_BEFORE = [1 + number * KILLS // ROUNDS for number in range(ROUNDS)]


def train_like(number: int, killer: Killer | None) -> "fr.Train":
    """A participant whose updates depend on the model, the round and its number alone."""

    def train(model: dict[str, np.ndarray], round: fr.Round) -> fr.Update:
        if killer is not None:
            killer.wait_for(KILLS_BEFORE[round.number])
        noise = np.random.default_rng((number, round.number)).standard_normal(SHAPE).astype(np.float32)
        return fr.Update({"weight": model["weight"] * np.float32(0.9) + noise}, num_examples=number + 1)

    return train


def prepare(data_dir: Path, database: str) -> tuple[str, list[str]]:
    """Makes an actor, three clients and a training in a data directory; returns its id and all tokens."""
    with (
        Server(data_dir, database=database) as server,
        fr.connect(server.address, server.admin_token) as admin,
    ):
        _, actor_token = admin.create_user("actor", role="ACTOR")
        made = [admin.create_user(f"client {number}") for number in range(3)]
        with fr.connect(server.address, actor_token) as actor:
            training = actor.create_training(
                {"weight": np.zeros(SHAPE, np.float32)},
                name="survivor",
                target_num_updates=ROUNDS,
                client_ids=[user.user_id for user, _ in made],
                update_precision="FLOAT16",
            )
    return training.training_id, [actor_token, *(token for _, token in made)]


def run(server: Server, training_id: str, tokens: list[str], killer: Killer | None) -> list[str]:
    """Runs the training to its end; returns the digests of all model versions."""
    # Clients are closed before the threads are waited for: whatever fails here, no participant goes on trying.
    with ThreadPoolExecutor(3) as pool, ExitStack() as stack:
        actor, *clients = [stack.enter_context(fr.connect(server.address, token)) for token in tokens]
        actor.start_training(training_id)
        # The first one sends whole models, the others differences.
        ends = [
            pool.submit(
                client.participate, train_like(number, killer), training_id=training_id, full_updates=number == 0
            )
            for number, client in enumerate(clients)
        ]
        if killer is not None:
            with killer:
                killer.run(KILLS)
        training = actor.wait(training_id, timeout=200 + 10 * KILLS)
        assert [end.result().model_version for end in ends] == [ROUNDS] * 3
        assert training.state == training_pb2.TRAINING_STATE_COMPLETED
        assert training.model_version == ROUNDS
        check_log(actor, training_id)
        versions = [actor.download_model(training.model_id, version) for version in range(ROUNDS + 1)]
    return [hashlib.sha256(version["weight"].tobytes()).hexdigest() for version in versions]


def check_log(actor: fr.Client, training_id: str) -> None:
    """Every update counted once: the log has no gaps, and each round three updates and one close."""
    events = list(actor.watch(training_id, resume_after=0))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    kinds = [event.WhichOneof("payload") for event in events]
    assert kinds == [
        "training_started",
        *["round_started", "update_accepted", "update_accepted", "update_accepted", "round_closed"] * ROUNDS,
        "training_finished",
    ]
    assert [event.round_closed.num_updates for event in events if event.HasField("round_closed")] == [3] * ROUNDS


@pytest.mark.attack
@pytest.mark.timeout(300 + 20 * KILLS)
@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.chaos)], indirect=True)
@pytest.mark.chaos
def test_a_training_survives_kills_with_the_same_bits(tmp_path: Path, database: str, copied: Callable[[], str]) -> None:
    expected, survived = with_and_without(KILLS, 7, tmp_path, database, copied, prepare, run)
    assert survived == expected
