"""A server whose data are temporary forces nothing to disk; any other server does."""

import os
from pathlib import Path

import pytest

from fedround_server.blobs import StagedRef
from fedround_server.blobs.local import LocalBlobs
from fedround_server.host import sync
from fedround_server.store.db.connection import connect


@pytest.mark.parametrize("is_needed", [True, False])
def test_files_and_folders_are_synced_unless_that_is_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_needed: bool
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr(sync, "_is_needed", True)
    if not is_needed:
        sync.skip_syncs()
    blobs = LocalBlobs(tmp_path)
    with blobs.writer(StagedRef("one")) as writer:
        writer.write(b"bytes")
        writer.sync()
        blobs.commit(writer.staged)
    assert bool(synced) is is_needed


@pytest.mark.parametrize(("no_sync", "level"), [(False, 2), (True, 0)])
def test_sqlite_syncs_each_commit_unless_that_is_not_needed(tmp_path: Path, no_sync: bool, level: int) -> None:
    database = connect(tmp_path / "db", no_sync=no_sync)
    with database.connection_context():
        assert database.execute_sql("PRAGMA synchronous").fetchone() == (level,)
