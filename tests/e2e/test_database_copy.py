"""A server that goes on with PostgreSQL in the middle of a training."""

import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fedround_client as fr
from calls import until
from e2e.federation import State, federation
from fedround.v1.training_pb2 import TRAINING_STATE_COMPLETED
from fedround_server import audit
from fedround_server import database as command
from fedround_server.backup import __main__ as backup
from fedround_server.config import Settings
from fedround_server.doctor.database import Database
from fedround_server.store.db.connection import database_name
from postgres import Postgres, create_database
from servers import Server

ROUNDS, MOVED = 5, 2


def learn(number: int, may_end: threading.Event) -> Callable[[State, fr.Round], tuple[State, int]]:
    """Client 1 is still training in the round in which the server is stopped."""

    def train(model: State, round: fr.Round) -> tuple[State, int]:
        if round.number == MOVED and number == 1:
            assert may_end.wait(60)
        noise = np.random.default_rng((number, round.number)).standard_normal(1000).astype(np.float32)
        return {"w": model["w"] * np.float32(0.9) + noise}, number + 1

    return train


def trained(folder: Path, database: str) -> bytes:
    """The bits of the last version; with a database, the server goes on there in the middle of a round."""
    may_end = threading.Event()
    with Server(folder) as server, federation(server, 2) as group:
        training = group.actor.create_training(
            {"w": np.zeros(1000, np.float32)}, name="t", client_ids=group.ids, target_num_updates=ROUNDS
        )
        ends = [group.take_part(number, learn(number, may_end)) for number in range(2)]
        group.actor.start_training(training.training_id)
        if database:

            def is_half() -> bool:
                found = group.actor.get_training(training.training_id)
                return (found.model_version, found.updates_arrived) == (MOVED, 1)

            until(is_half)
            server.stop()
            assert command.main(["copy", "--data-dir", str(folder), "--database", database]) == 0
            server._options = ["--database", database]
            server.start()
            assert group.actor.get_training(training.training_id).updates_arrived == 1
        may_end.set()
        for end in ends:
            end.result(60)
        ended = group.actor.wait(training.training_id, 60)
        assert (ended.state, ended.model_version) == (TRAINING_STATE_COMPLETED, ROUNDS)
        with fr.connect(server.address, server.admin_token) as admin:
            report = admin.verify_audit()
            assert (report.versions, report.counted) == (ROUNDS, ROUNDS * 2)
        bits: bytes = group.actor.download_model(ended.model_id)["w"].tobytes()
        return bits


def test_nothing_uses_the_file_that_was_copied(
    tmp_path: Path, postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, database = tmp_path / "data", create_database(postgres)
    with Server(folder) as server:
        server.stop()
        assert command.main(["copy", "--data-dir", str(folder), "--database", database]) == 0
        capsys.readouterr()
        line = f"the database of {folder} was copied to {database_name(database)}: set --database or FEDROUND_DATABASE"
        with pytest.raises(AssertionError, match=re.escape(line)):
            server.start()
        assert audit.main(["--data-dir", str(folder)]) == 1
        assert backup.main(["backup", "--data-dir", str(folder), "--output", str(tmp_path / "backup")]) == 1
        assert capsys.readouterr().err.count(line) == 2
        (finding,) = Database(Settings(data_dir=folder), is_running=False).check()
        assert (finding.state, line in finding.found) == ("fail", True)
        # As the line says: no server has used the copy.
        (folder / "database.moved").unlink()
        server.start()


def test_a_training_goes_on_in_postgresql_with_the_same_bits(
    tmp_path: Path, postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained(tmp_path / "moved", create_database(postgres)) == trained(tmp_path / "stayed", "")
