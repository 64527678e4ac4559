"""Servers of a PostgreSQL database whose files are in a place: the one that the database remembers, and no other."""

from pathlib import Path

import numpy as np
import pytest

import fedround_client as fr
from e2e.federation import federation
from e2e.object_store import Store, copy, refused
from fedround_server.blobs.objects.layout import OBJECTS
from seaweed import seaweed
from servers import MODULE, Server

pytestmark = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in seaweed().environment().items():
        monkeypatch.setenv(name, value)
    return Store()


def test_a_server_with_another_database_deletes_no_files(store: Store, tmp_path: Path, database: str) -> None:
    options = ("--objects", store.url)
    with Server(tmp_path / "data", options=options, program=MODULE) as server, federation(server, 0) as group:
        model = group.actor.upload_model({"w": np.ones(3)})
    # A database in use, whose server had its files elsewhere, on another machine.
    with Server(tmp_path / "other", database=database) as other, federation(other, 0) as group:
        group.actor.upload_model({"w": np.zeros(3)})
    said = refused(tmp_path / "new", "--database", database, "--objects", store.url)
    assert f"{store.url} has the files of another database" in said
    assert [entry.key for entry in store.entries()] == [f"{OBJECTS}{model.sha256[:2]}/{model.sha256}"]


def test_a_server_alone_with_the_wrong_place_does_not_take_the_database(
    store: Store, tmp_path: Path, database: str
) -> None:
    right = Server(tmp_path / "data", database=database, options=("--objects", store.url), program=MODULE)
    with right, federation(right, 0) as group:
        group.actor.upload_model({"w": np.ones(3)})
    for name, options in {"folder": (), "bucket": ("--objects", Store().url)}.items():
        said = refused(tmp_path / name, "--database", database, *options)
        assert "does not have the files of this database: of 1 that were looked for, it has 0" in said
    with right:
        pass


def test_a_database_follows_its_files_and_does_not_go_back(
    store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str], database: str
) -> None:
    data_dir, other = tmp_path / "data", tmp_path / "other"
    with Server(data_dir, database=database) as server, federation(server, 0) as group:
        model, token = group.actor.upload_model({"w": np.ones(3)}), group.actor_token
    other.mkdir(mode=0o700)
    (other / "objects").symlink_to(data_dir / "objects")
    assert copy(capfd, data_dir, store.url)[0] == 0
    moved = Server(data_dir, database=database, options=("--objects", store.url), program=MODULE)
    with moved, fr.connect(moved.address, token) as actor:
        assert actor.download_model(model.model_id)["w"].all()
    # A replica that still has the former place.
    assert f"{other / 'objects'} has the files of another database" in refused(other, "--database", database)
    assert copy(capfd, store.url, data_dir)[0] == 0
    with Server(other, database=database):
        pass
    said = refused(tmp_path / "third", "--database", database, "--objects", store.url)
    assert f"{store.url} has the files of another database" in said
