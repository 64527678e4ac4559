"""Local blobs whose objects several processes share."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.blobs import ONE, put_small
from fedround_server.blobs import UNREFERENCED_SECONDS, local
from fedround_server.blobs.local import LocalBlobs
from fedround_server.host.file_lock import BACKUP_LOCK, shared

DATA = b"the same bytes"


@pytest.fixture
def two(tmp_path: Path) -> Iterator[list[LocalBlobs]]:
    """Those of two processes."""
    found = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        (tmp_path / "objects").mkdir(exist_ok=True)
        (folder / "objects").symlink_to(tmp_path / "objects")
        found.append(LocalBlobs(folder, is_shared=True))
    yield found
    for blobs in found:
        blobs.close()


def test_what_one_has_committed_is_not_removed_by_another_that_releases_it(two: list[LocalBlobs]) -> None:
    first, second = two
    put_small(first, DATA)
    blob = put_small(second, DATA)
    second.keep(blob)
    first.release(blob)
    assert second.examine(blob).sha256 == blob.sha256


def test_a_collection_does_not_remove_what_another_commits_meanwhile(
    two: list[LocalBlobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two
    blob = put_small(first, DATA)
    first.keep(blob)
    looked, begun = threading.Event(), threading.Event()

    def remove(path: Path, _: float) -> int:
        looked.set()
        # The other one waits for the lock, or has committed.
        begun.wait(5)
        committing.join(0.2)
        path.unlink()
        return blob.size_bytes

    monkeypatch.setattr(local, "_remove_if_old", remove)
    collecting = threading.Thread(target=first.collect, args=([blob.sha256], UNREFERENCED_SECONDS))

    def commit() -> None:
        begun.set()
        put_small(second, DATA)

    committing = threading.Thread(target=commit)
    collecting.start()
    looked.wait(5)
    committing.start()
    for thread in (collecting, committing):
        thread.join()
    assert second.examine(blob).sha256 == blob.sha256


def test_neither_collects_while_a_backup_reads_the_objects(two: list[LocalBlobs], tmp_path: Path) -> None:
    with shared(tmp_path / BACKUP_LOCK):
        for blobs in two:
            with blobs.collecting() as may_collect:
                assert not may_collect


def test_a_collection_leaves_an_old_upload_that_another_commits(
    two: list[LocalBlobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two
    collected: list[int] = []

    def collect(name: str) -> None:
        if name == "blob.renamed":
            collected.extend(first.collect([blob.sha256]))

    monkeypatch.setattr(local, "reached", collect)
    with second.writer(ONE) as writer:
        writer.write(DATA)
        writer.sync()
        blob = writer.staged.blob
        os.utime(second.files.local_path(writer.staged.file), (0, 0))
        second.commit(writer.staged)
    assert not collected
    assert second.examine(blob).sha256 == blob.sha256
