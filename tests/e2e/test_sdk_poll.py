"""Participants that poll, against a real server: beside one that is subscribed, and across a restart."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fedround_client as fr
from calls import until
from e2e.federation import plus_one, users
from fedround.v1.round_pb2 import ROUND_STATE_PENDING
from fedround_client.participation import Mode
from servers import Server

ZEROS = {"w": np.zeros(3, np.float32)}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data", options=("--check-in-seconds", "0.2")) as running:
        yield running


def test_participants_that_poll_take_part_like_others(server: Server) -> None:
    actor_token, made = users(server, 3)
    ends: list[Future[fr.Participation]] = []
    seen: list[int] = []

    def train(model: dict[str, np.ndarray], round_: fr.Round) -> tuple[dict[str, np.ndarray], int]:
        seen.append(round_.number)
        return plus_one(model, round_)

    def take_part(token: str, mode: Mode) -> fr.Participation:
        with fr.connect(server.address, token) as client:
            return client.participate(train, mode=mode)

    with fr.connect(server.address, actor_token) as actor, ThreadPoolExecutor(3) as pool:
        training = actor.create_training(
            ZEROS,
            name="t",
            target_num_updates=4,
            client_ids=[id_ for id_, _ in made],
            cohort=fr.Cohort(min_available=3),
        )
        training_id = training.training_id
        actor.start_training(training_id)
        assert actor.get_round(training_id).state == ROUND_STATE_PENDING
        ends += [pool.submit(take_part, token, "poll") for _, token in made[:2]]
        ends.append(pool.submit(take_part, made[2][1], "subscribe"))
        until(lambda: actor.get_training(training_id).model_version >= 2)
        server.stop()
        server.start()
        assert actor.wait(training_id, 60).model_version == 4
        assert [end.result(30).rounds for end in ends] == [4, 4, 4]
        np.testing.assert_array_equal(actor.download_model(training.model_id)["w"], np.full(3, 4, np.float32))
    assert len(seen) == 12
