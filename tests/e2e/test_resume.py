"""A server that is killed in the middle of a transfer: the SDK goes on where it was, by itself."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fedround_client as fr
from calls import until
from e2e.federation import Federation, federation
from fedround_client.payload import CHUNK
from servers import Server

ZEROS = {"w": np.zeros(3_000_000, np.float32)}
WEIGHTS = {"w": np.arange(3_000_000, dtype=np.float32)}


@pytest.fixture
def group(server: Server) -> Iterator[Federation]:
    with federation(server, 1) as group:
        yield group


class Sabotage:
    """Kills a server when half of a file is through and some of it is on disk, and starts it again."""

    def __init__(self, server: Server, is_upload: bool) -> None:
        self.before: list[int] = []
        self.after: list[int] = []
        self._server = server
        self._is_upload = is_upload

    def __call__(self, done: int, total: int) -> None:
        if self.after or (self.before and self.before[-1] >= total // 2):
            self.after.append(done)
            return
        self.before.append(done)
        if done >= total // 2:
            until(lambda: not self._is_upload or self._written() >= 2 * CHUNK)
            self._server.kill()
            self._server.start()

    def _written(self) -> int:
        return sum(path.stat().st_size for path in (self._server.data_dir / "uploads").glob("*/*"))


def store(group: Federation, progress: Callable[[int, int], None]) -> Any:
    model = group.actor.upload_model(WEIGHTS, name="m", progress=progress)
    return group.actor.download_model(model.model_id)


def create(group: Federation, progress: Callable[[int, int], None]) -> Any:
    training = group.actor.create_training(WEIGHTS, name="t", target_num_updates=1, progress=progress)
    return group.actor.download_model(training.model_id)


def submit(group: Federation, progress: Callable[[int, int], None]) -> Any:
    training = group.actor.create_training(ZEROS, name="t", target_num_updates=1, client_ids=group.ids)
    group.actor.start_training(training.training_id)
    with group.connect(0) as client:
        client.submit_update(training.training_id, 0, WEIGHTS, 1, progress=progress)
    group.actor.wait(training.training_id, 200)
    return group.actor.download_model(training.model_id)


@pytest.mark.parametrize("send", [store, create, submit])
def test_an_upload_goes_on_behind_a_kill(
    server: Server, group: Federation, send: Callable[[Federation, Sabotage], Any]
) -> None:
    sabotage = Sabotage(server, is_upload=True)
    assert np.array_equal(send(group, sabotage)["w"], WEIGHTS["w"])
    # It did not begin anew.
    assert sabotage.after[0] > 2 * CHUNK
    assert list((server.data_dir / "uploads").glob("*/*")) == []


def test_a_download_goes_on_behind_a_kill(server: Server, group: Federation) -> None:
    model = group.actor.upload_model(WEIGHTS)
    sabotage = Sabotage(server, is_upload=False)
    downloaded = group.actor.download_model(model.model_id, progress=sabotage)
    assert np.array_equal(downloaded["w"], WEIGHTS["w"])
    received = sabotage.before + sabotage.after
    assert received == sorted(set(received))
    assert sabotage.after[-1] == received[-1] == model.size_bytes


def test_an_assigned_model_is_fetched_from_where_it_was_cut(server: Server, group: Federation) -> None:
    chain = fr.FedDc(daisy_period=1, aggregation_period=2)
    training = group.actor.create_training(
        ZEROS, name="t", target_num_updates=1, client_ids=group.ids, aggregation=chain
    )
    group.actor.start_training(training.training_id)
    with group.connect(0) as client:
        client.submit_update(training.training_id, 0, WEIGHTS, 1)
        until(lambda: group.actor.get_training(training.training_id).round == 1)
        sabotage = Sabotage(server, is_upload=False)
        assigned = client.download_assigned_model(training.training_id, 1, progress=sabotage)
    assert np.array_equal(assigned["w"], WEIGHTS["w"])
    received = sabotage.before + sabotage.after
    assert received == sorted(set(received))
