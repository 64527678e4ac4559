"""A server that is killed and restored from a backup that was made while it ran: its trainings go on to their end."""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedround_client as fr
from calls import until
from e2e.federation import Federation, federation
from fedround.v1.training_pb2 import TRAINING_STATE_COMPLETED
from fedround_server.backup.layout import Backup
from fedround_server.backup.restore import restore, verify
from fedround_server.backup.take import Taken, take
from fedround_server.store.queries.backup import find_digests
from servers import Server

CLIENTS = 3
ROUNDS = 7
BACKED_UP, KILLED = 2, 4
"""The version at the time of the backup that is restored, and the round in which the server is killed."""
PG_DUMP, PG_RESTORE = "pg_dump", "pg_restore"


def backed_up(server: Server, output: Path, keep: int = 1000, database: str = "", pg_dump: str = PG_DUMP) -> Taken:
    source = database or server.data_dir / "fedround.db"
    return take(server.data_dir, source, output, link=False, keep=keep, files_only=False, pg_dump=pg_dump)


@contextmanager
def again_and_again(*functions: Callable[[], object]) -> Iterator[None]:
    """Calls functions over and over, each in a thread of its own, during the block."""
    over = threading.Event()

    def run(function: Callable[[], object]) -> None:
        while not over.is_set():
            function()

    with ThreadPoolExecutor(len(functions)) as pool:
        running = [pool.submit(run, function) for function in functions]
        try:
            yield
        finally:
            over.set()
        for one in running:
            one.result()


def age_dropped_updates(data_dir: Path) -> None:
    """Makes the files of updates that retention has dropped so old that they may be collected."""
    with closing(sqlite3.connect(f"{(data_dir / 'fedround.db').as_uri()}?mode=ro", uri=True)) as database:
        dropped = database.execute("SELECT sha256 FROM round_update WHERE NOT stored").fetchall()
    for (digest,) in dropped:
        with suppress(FileNotFoundError):
            os.utime(data_dir / "objects" / digest[:2] / digest, (0, 0))


def learn(number: int, restored: threading.Event) -> Callable[[dict[str, np.ndarray], fr.Round], fr.Update]:
    """A participant that is still training when the server is killed."""

    def train(model: dict[str, np.ndarray], round: fr.Round) -> fr.Update:
        if round.number == KILLED:
            assert restored.wait(60)
        noise = np.random.default_rng((number, round.number)).standard_normal(1000).astype(np.float32)
        return fr.Update({"w": model["w"] * np.float32(0.9) + noise}, number + 1)

    return train


def start(group: Federation, restored: threading.Event, pool: ThreadPoolExecutor) -> tuple[str, list[Any]]:
    """Starts a training; returns its id, and the ends of its participants and of the actor that waits."""
    training = group.actor.create_training(
        {"w": np.zeros(1000, np.float32)},
        name="t",
        client_ids=group.ids,
        target_num_updates=ROUNDS,
        keep_update_rounds=BACKED_UP + 1,
    )
    ends: list[Any] = [group.take_part(number, learn(number, restored)) for number in range(CLIENTS)]
    group.actor.start_training(training.training_id)
    return training.training_id, [*ends, pool.submit(group.actor.wait, training.training_id, 100)]


def test_a_training_goes_on_after_kill_and_restore(tmp_path: Path) -> None:
    output, restored = tmp_path / "backup", threading.Event()
    with (
        Server(tmp_path / "data") as server,
        fr.connect(server.address, server.admin_token) as admin,
        federation(server, CLIENTS) as group,
        ThreadPoolExecutor(1) as pool,
    ):
        training_id, ends = start(group, restored, pool)

        def collect() -> None:
            age_dropped_updates(server.data_dir)
            with suppress(fr.BackupInProgress):
                admin.collect_files()

        with again_and_again(lambda: backed_up(server, output), collect):
            until(lambda: group.actor.get_training(training_id).model_version == KILLED)
        names = Backup(output).names()
        manifests = {name: Backup(output).manifest(name) for name in names}
        assert [name for name, manifest in manifests.items() if manifest.damaged] == []
        assert verify(output).problems == []
        chosen = _snapshot_of_version(output, names)
        server.kill()
        for number, name in enumerate(names):
            restore(output, tmp_path / f"restored {number}", snapshot=name, database="", pg_restore=PG_RESTORE)
        server.data_dir = tmp_path / f"restored {names.index(chosen)}"
        server.start()
        restored.set()
        for end in ends:
            end.result()
        training = group.actor.get_training(training_id)
        assert (training.state, training.model_version) == (TRAINING_STATE_COMPLETED, ROUNDS)
        for number in range(ROUNDS - BACKED_UP - 1, ROUNDS):
            replayed = group.actor.replay_round(training_id, number)
            assert replayed.replayed_sha256 == replayed.recorded_sha256
        report = admin.verify_audit()
        assert (report.versions, report.counted) == (ROUNDS, ROUNDS * CLIENTS)


def _snapshot_of_version(output: Path, names: list[str]) -> str:
    """Returns the last snapshot in which the model has the version that is to be restored, or an earlier one."""
    found = ""
    for name in names:
        with closing(sqlite3.connect(output / "snapshots" / name / "fedround.db")) as database:
            rows = database.execute("SELECT model_version FROM training WHERE state = 'ONGOING'").fetchall()
        if rows and rows[0][0] <= BACKED_UP:
            found = name
    assert found
    return found


def test_a_participant_whose_update_is_lost_sends_it_again(tmp_path: Path) -> None:
    output, restored, asked = tmp_path / "backup", threading.Event(), threading.Event()
    rounds: list[int] = []

    def quick(model: dict[str, np.ndarray], round: fr.Round) -> tuple[dict[str, np.ndarray], int]:
        asked.set()
        rounds.append(round.number)
        return model, 1

    def slow(model: dict[str, np.ndarray], round: fr.Round) -> tuple[dict[str, np.ndarray], int]:
        assert restored.wait(60)
        return model, 1

    with Server(tmp_path / "data") as server, federation(server, 2) as group:
        training = group.actor.create_training(
            {"w": np.zeros(3, np.float32)}, name="t", client_ids=group.ids, target_num_updates=1
        )
        group.actor.start_training(training.training_id)
        backed_up(server, output)
        ends = [group.take_part(0, quick), group.take_part(1, slow)]
        until(lambda: group.actor.get_training(training.training_id).updates_arrived == 1)
        server.kill()
        restore(output, tmp_path / "restored", snapshot="", database="", pg_restore=PG_RESTORE)
        server.data_dir = tmp_path / "restored"
        server.start()
        assert group.actor.get_training(training.training_id).updates_arrived == 0
        restored.set()
        assert [end.result(60).model_version for end in ends] == [1, 1]
        assert rounds == [0, 0]


def test_nothing_is_collected_while_a_backup_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(tmp_path / "data") as server, fr.connect(server.address, server.admin_token) as admin:
        model = admin.upload_model({"w": np.zeros(3, np.float32)}, name="m")

        def then_remove() -> list[str]:
            digests = find_digests()
            admin.remove_model(model.model_id)
            for path in server.data_dir.glob("objects/*/*"):
                os.utime(path, (0, 0))
            with pytest.raises(fr.BackupInProgress):
                admin.collect_files()
            return digests

        monkeypatch.setattr("fedround_server.backup.take.find_digests", then_remove)
        taken = backed_up(server, tmp_path / "backup")
        assert (taken.num_copied, taken.damaged) == (1, [])
        found = admin.collect_files()
        assert (found.num_files, found.size_bytes) == (1, taken.bytes_copied)
        assert list(server.data_dir.glob("objects/*/*")) == []
    restore(tmp_path / "backup", tmp_path / "restored", snapshot="", database="", pg_restore=PG_RESTORE)
    with Server(tmp_path / "restored") as server, fr.connect(server.address, _token(tmp_path)) as admin:
        assert admin.download_model(model.model_id)["w"].tolist() == [0, 0, 0]


def _token(folder: Path) -> str:
    return (folder / "data" / "admin.token").read_text().strip()
