"""The worker is killed, again and again, while it checks updates, aggregates and predicts: the same bits come out."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedround_client as fr
from e2e.federation import Federation, federation
from fedround.v1 import training_pb2
from servers import MODULE, Server
from sizes import SEED, size

KILLS = size("WORKER_KILLS", 1)
ROUNDS = 3
CLIENTS = 2
SHAPE = (1, 200_000)
pytestmark = [pytest.mark.attack, pytest.mark.timeout(300 + 20 * KILLS)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent), prepend=":")
        options = ("--architecture", "line=chaos.test_worker_killed:line")
        with Server(tmp_path_factory.mktemp("workers") / "data", options=options, program=MODULE) as running:
            yield running


@pytest.fixture
def group(server: Server) -> Iterator[Federation]:
    with federation(server, CLIENTS) as made:
        yield made


def line() -> object:
    import torch

    return torch.nn.Linear(SHAPE[1], SHAPE[0])


class Killer:
    """Kills the workers of a server at random moments, for the time of a block."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._random = random.Random(SEED)
        self._over = threading.Event()
        self.kills = 0

    def workers(self) -> list[int]:
        """The server's processes that do jobs; one more of them keeps track of semaphores."""
        children = Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"spawn_main" in _command(int(pid))]

    def kill(self) -> int:
        """Kills all workers that there are now; returns how many."""
        killed = 0
        for pid in self.workers():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        return killed

    @contextmanager
    def killing(self) -> Iterator[None]:
        """Kills so many workers within the block, and then no more: on a busy machine they start slowly."""
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(self._run)
            try:
                yield
            finally:
                self._over.set()
                work.result()

    def _run(self) -> None:
        while self.kills < KILLS and not self._over.wait(self._random.uniform(0, 3)):
            for pid in self.workers():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.kills += 1

    def wait_for(self, kills: int) -> None:
        while self.kills < kills:
            time.sleep(0.01)


def _command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def run(group: Federation, killer: Killer | None) -> tuple[str, list[bytes]]:
    """Runs a training to its end; each round's updates wait for their share of the kills."""

    def participant(number: int) -> tuple[Any, ...]:
        def train(model: dict[str, np.ndarray], round: fr.Round) -> fr.Update:
            if killer is not None:
                killer.wait_for(min(KILLS, (round.number + 1) * KILLS // ROUNDS))
            noise = np.random.default_rng((number, round.number)).standard_normal(SHAPE).astype(np.float32)
            return fr.Update({**model, "weight": model["weight"] * np.float32(0.9) + noise}, number + 1)

        return (train,)

    zeros = {"weight": np.zeros(SHAPE, np.float32), "bias": np.zeros(1, np.float32)}
    training = group.actor.create_training(
        zeros, name="t", client_ids=group.ids, target_num_updates=ROUNDS, architecture="line"
    )
    # Who is first in canonical order must not depend on ids that are made anew each time.
    order = sorted(range(CLIENTS), key=group.ids.__getitem__)
    ends = [group.take_part(client, *participant(number)) for number, client in enumerate(order)]
    group.actor.start_training(training.training_id)
    for end in ends:
        assert end.result(200 + 10 * KILLS).rounds == ROUNDS
    ended = group.actor.get_training(training.training_id)
    assert ended.state == training_pb2.TRAINING_STATE_COMPLETED
    versions = [group.actor.download_model(ended.model_id, version) for version in range(ROUNDS + 1)]
    return ended.model_id, [version["weight"].tobytes() for version in versions]


def test_rounds_and_predictions_come_out_the_same_however_often_the_worker_is_killed(
    server: Server, group: Federation
) -> None:
    model_id, expected = run(group, None)
    killer = Killer(server)
    with killer.killing():
        _, survived = run(group, killer)
        assert survived == expected
    assert killer.kills >= KILLS
    inputs = np.ones((2, SHAPE[1]), np.float32)
    undisturbed = group.actor.predict(model_id, inputs, seed=1)
    for _ in range(min(2, KILLS)):
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(group.actor.predict, model_id, inputs, seed=1)
            assert killer.kill() >= 1
            assert np.array_equal(found.result(200).mean, undisturbed.mean)
