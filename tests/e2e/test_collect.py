"""What retention and removal give back, and when: measured on the disk."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import fedround_client as fr
from e2e.federation import Federation, federation, plus_one
from servers import Server

SIZE = 250_000
"""Elements of the model."""
FILE = SIZE * 4
"""Bytes of a file at least; its header is small."""


def stored(data_dir: Path) -> int:
    """The files that there are; each is a little larger than FILE."""
    paths = list(data_dir.glob("objects/*/*"))
    sizes = sum(path.stat().st_size for path in paths)
    assert len(paths) * FILE <= sizes <= len(paths) * (FILE + 1000)
    return len(paths)


def age(data_dir: Path, seconds: int) -> None:
    """Makes all files older."""
    for path in data_dir.glob("objects/*/*"):
        time = path.stat().st_mtime - seconds
        os.utime(path, (time, time))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    options = ("--max-stored-bytes", str(FILE * 7))
    with Server(tmp_path / "data", options=options) as running:
        yield running


@pytest.fixture
def collect(server: Server) -> Iterator[Callable[[], tuple[int, bool]]]:
    """Collects; returns how many files were deleted, and whether their size is what the disk has got back."""
    with fr.connect(server.address, server.admin_token) as admin:

        def run() -> tuple[int, bool]:
            before = sum(path.stat().st_size for path in server.data_dir.glob("objects/*/*"))
            found = admin.collect_files()
            after = sum(path.stat().st_size for path in server.data_dir.glob("objects/*/*"))
            return found.num_files, found.size_bytes == before - after

        yield run


def train(group: Federation, **spec: int) -> tuple[str, str]:
    model = {"w": np.zeros(SIZE, np.float32)}
    made = group.run(lambda _: (plus_one,), model, target_num_updates=2, **spec)
    return made.training_id, made.model_id


def test_retention_and_removal_give_back_the_disk(server: Server, collect: Callable[[], tuple[int, bool]]) -> None:
    with federation(server, 1) as group:
        training_id, model_id = train(group, keep_versions=1, keep_update_rounds=1)
        # A participant that adds one to all returns the file of the next version: versions 0 to 2.
        assert stored(server.data_dir) == 3
        # Nothing was there for an hour yet.
        assert collect() == (0, True)
        age(server.data_dir, 3600)
        # Version 2, which is the update of the last round, stays.
        assert collect() == (2, True)
        assert stored(server.data_dir) == 1
        group.actor.remove_training(training_id)
        assert collect() == (0, True)
        group.actor.remove_model(model_id)
        assert collect() == (1, True)
        assert stored(server.data_dir) == 0


def test_a_server_with_as_many_bytes_as_it_takes_accepts_models_again(
    server: Server, collect: Callable[[], tuple[int, bool]]
) -> None:
    with federation(server, 1) as group:
        models = [
            group.actor.upload_model({"w": np.full(SIZE, number, np.float32)}, name=str(number)).model_id
            for number in range(6)
        ]
        more = {"w": np.full(SIZE, 9, np.float32)}
        with pytest.raises(fr.Quota, match=r"the server would have files of .* remove some first"):
            group.actor.upload_model(more, name="more")
        for model_id in models[:2]:
            group.actor.remove_model(model_id)
        # Removed models give back their quota at once, and the disk when they are collected.
        with pytest.raises(fr.Quota):
            group.actor.upload_model(more, name="more")
        age(server.data_dir, 3600)
        assert collect() == (2, True)
        group.actor.upload_model(more, name="more")
