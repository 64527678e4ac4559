"""A data directory that an earlier version wrote, and that was left by a kill in mid-round, is taken up by this one.

data/data_directory_0008.tar.gz was written by the version whose last migration is 0008: a training with two
participants is in the second of three rounds, in which one has submitted; tokens.json has the tokens.
"""

import json
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fedround_client as fr
from fedround.v1.training_pb2 import TRAINING_STATE_COMPLETED
from fedround_server.backup.take import take
from servers import Server

OLD = Path(__file__).with_name("data") / "data_directory_0008.tar.gz"


def add(number: int) -> Callable[[dict[str, np.ndarray], fr.Round], tuple[dict[str, np.ndarray], int]]:
    """What the participants did before, too."""
    return lambda model, round: ({"w": model["w"] + np.float32(number + 1)}, number + 1)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(OLD) as archive:
        archive.extractall(tmp_path / "data", filter="data")
    (tmp_path / "data").chmod(0o700)
    return tmp_path / "data"


def test_a_training_in_mid_round_goes_on_after_an_upgrade(old: Path) -> None:
    known = json.loads((old / "tokens.json").read_text())
    training_id = known["training_id"]
    with (
        Server(old) as server,
        fr.connect(server.address, known["actor"]) as actor,
        fr.connect(server.address, known["admin"]) as admin,
        ThreadPoolExecutor(2) as pool,
    ):
        assert "from version 8 to " in server.log
        before = actor.get_training(training_id)
        assert (before.model_version, before.round, before.updates_arrived) == (1, 1, 1)

        def take_part(number: int) -> fr.Participation:
            with fr.connect(server.address, known["clients"][number]) as client:
                return client.participate(add(number), training_id=training_id)

        ends = [pool.submit(take_part, number) for number in range(2)]
        assert [end.result(60).rounds for end in ends] == [1, 2]
        training = actor.get_training(training_id)
        assert (training.state, training.model_version) == (TRAINING_STATE_COMPLETED, 3)
        # The mean of 1 and 2, weighted 1 to 2, three times.
        assert actor.download_model(training.model_id)["w"] == pytest.approx(np.full(8, 5))
        for number in range(3):
            replayed = actor.replay_round(training_id, number)
            assert replayed.replayed_sha256 == replayed.recorded_sha256
        assert admin.verify_audit().versions == 3


def test_a_database_of_an_older_version_is_backed_up_by_that_version(old: Path, tmp_path: Path) -> None:
    database, output = old / "fedround.db", tmp_path / "backup"
    with pytest.raises(RuntimeError, match=r"of an older version of fedround \(see 0009_.* the version of the server"):
        take(old, database, output, link=False, keep=1, files_only=False, pg_dump="pg_dump")
    assert not list((output / "snapshots").glob("[!.]*"))
