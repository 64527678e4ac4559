"""A server that starts after its machine lost power has all small files that it had accepted."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from calls import MODEL, kinds, model_file
from contracts.blobs import small
from damage import flip
from e2e.data_dirs import DataDirectory, fill_data_dir
from e2e.test_recover import download, log, taken_up
from fedround.v1 import training_pb2
from fedround_server.blobs.segment import Segment

NOW = datetime.now(UTC)
TORN = small(b"torn" * 1000)


def lose(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, 0)


def scramble(path: Path) -> None:
    path.chmod(0o600)
    flip(path, path.stat().st_size - 1)


def tear(data_dir: Path) -> None:
    """Cuts the last entry of the journal off half way."""
    (segment,) = (data_dir / "journal").iterdir()
    os.truncate(segment, segment.stat().st_size - 2000)


def doctor(data_dir: Path, database: str) -> tuple[str, str]:
    """What `fedround doctor` says of the files."""
    words = ["--data-dir", str(data_dir), *(["--database", database] if database else [])]
    run = subprocess.run(
        [sys.executable, "-m", "fedround_server.doctor", *words], capture_output=True, text=True, check=False
    )
    (found,) = [one for one in json.loads(run.stdout) if one["check"] == "files"]
    return found["state"], found["found"]


@pytest.mark.parametrize("damage", [lose, empty, scramble])
def test_accepted_updates_are_there(data_dir: Path, database: str, damage: Callable[[Path], None]) -> None:
    async def prepare(directory: DataDirectory) -> tuple[str, str, str, list[Path]]:
        directory.small = True
        actor, (first, second, third), training = await directory.running(3)
        for number, user in enumerate((first, second, third)):
            await directory.submit(training, 0, user, model_file(1 + number))
        # Another one was removed, with its files.
        updates = [small(model_file(1 + number)).blob for number in range(3)]
        removed = small(model_file(9)).blob
        owner, (user, *_), other = await directory.running(2)
        await directory.submit(other, 0, user, model_file(9))
        await directory.store.trainings.remove(other.training_id, owner, force=True, now=NOW)
        # It was being written when the power went off.
        directory.blobs.store([TORN])
        paths = [directory.blobs.files.local_path(blob) for blob in (*updates, removed)]
        return actor, training.training_id, training.model_id, paths

    actor_id, training_id, model_id, paths = fill_data_dir(data_dir, database, NOW, prepare)
    for path in paths:
        damage(path)
    tear(data_dir)
    if damage is not scramble:
        state, words = doctor(data_dir, database)
        assert (state, words.split("; ")[1]) == ("note", "the next start makes 3 anew from the journal")
    with taken_up(data_dir, database, actor_id) as actor:
        assert doctor(data_dir, database)[0] == "ok"
        assert list((data_dir / "journal").iterdir()) == []
        assert kinds(log(actor, training_id))[-2:] == ["round_closed", "training_finished"]
        assert actor.get(training_id).state == training_pb2.TRAINING_STATE_COMPLETED
        assert np.array_equal(download(actor, model_id)["weight"], MODEL["weight"] + 2)
        assert [path.exists() for path in paths] == [True, True, True, False]


def test_what_the_journal_does_not_have_is_lost(data_dir: Path) -> None:
    """It is reported as before."""

    async def prepare(directory: DataDirectory) -> list[Path]:
        directory.small = True
        _, users, training = await directory.running(2)
        await directory.submit(training, 0, users[0], model_file(1))
        return [directory.blobs.files.local_path(small(model_file(1)).blob)]

    (path,) = fill_data_dir(data_dir, "", NOW, prepare)
    path.unlink()
    for segment in (data_dir / "journal").iterdir():
        segment.unlink()
    # Neither does an entry of other bytes help.
    segment = Segment(data_dir / "journal/one")
    segment.append([TORN])
    segment.close()
    state, words = doctor(data_dir, "")
    assert (state, path.name in words) == ("fail", True)
