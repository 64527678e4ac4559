"""Files that are no longer in use are removed in batches, on both databases."""

import os
from pathlib import Path
from typing import Any

import pytest

from contracts.coordination import Coordination, coordinating, lose
from fedround_server.blobs import UNREFERENCED_SECONDS, StagedRef
from fedround_server.coordinator.collection import COLLECTION_BATCH
from fedround_server.coordinator.housekeeping import COLLECTION_INTERVAL
from fedround_server.domain.model import BlobRef
from fedround_server.store import Store
from fedround_server.store.verbs.model import ModelVerbs


def old(coordination: Coordination, content: str) -> BlobRef:
    """Stores a blob that came long ago."""
    with coordination.context.blobs.writer(StagedRef("one")) as writer:
        writer.write(content.encode())
        coordination.context.blobs.commit(writer.staged)
    coordination.context.blobs.keep(writer.staged.blob)
    path = coordination.context.blobs.files.local_path(writer.staged.blob)
    os.utime(path, (path.stat().st_mtime - UNREFERENCED_SECONDS - 60,) * 2)
    return writer.staged.blob


def stored(coordination: Coordination, *blobs: BlobRef) -> list[bool]:
    return [coordination.context.blobs.files.local_path(blob).exists() for blob in blobs]


async def test_files_that_are_not_in_use_are_removed_in_batches(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests_in_use, asked = ModelVerbs.digests_in_use, []

    async def counted(self: Any, among: list[str]) -> set[str]:
        asked.append(len(among))
        return await digests_in_use(self, among)

    monkeypatch.setattr(ModelVerbs, "digests_in_use", counted)
    async with coordinating(store, tmp_path) as coordination:
        _, (client,), training = await coordination.running(1)
        needed = old(coordination, f"0 {client}")
        await coordination.world.submit(training.training_id, 0, client)
        unused = [old(coordination, f"unused {number}") for number in range(COLLECTION_BATCH + 10)]
        await coordination.coordinator.recover()
        await coordination.clock.asleep(COLLECTION_INTERVAL)
        assert stored(coordination, needed, *unused) == [True] + [False] * len(unused)
    assert asked == [COLLECTION_BATCH, 11]


async def test_a_file_of_two_updates_stays_until_neither_uses_it(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        shared = old(coordination, "the same weights")
        trainings = [await coordination.running(3) for _ in range(2)]
        for _, (*clients, _), training in trainings:
            updates = [
                (await coordination.world.submit(training.training_id, 0, client, "the same weights"))[0]
                for client in clients
            ]
            assert updates[0].update_id != updates[1].update_id
            assert {update.blob for update in updates} == {shared}
        await coordination.coordinator.recover()
        await coordination.clock.asleep(COLLECTION_INTERVAL)
        assert stored(coordination, shared) == [True]
        stays = []
        for actor, _, training in trainings:
            await coordination.coordinator.trainings.remove(training.training_id, actor, force=True)
            coordination.clock.advance(COLLECTION_INTERVAL)
            await coordination.clock.asleep(COLLECTION_INTERVAL)
            stays += stored(coordination, shared)
        assert stays == [True, False]


async def test_collection_goes_on_after_an_error(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with coordinating(store, tmp_path) as coordination:
        unused = old(coordination, "unused")
        lose(monkeypatch, ModelVerbs, "digests_in_use", committed=False)
        await coordination.coordinator.recover()
        await coordination.clock.asleep(COLLECTION_INTERVAL)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "iterdir", _fail)
            coordination.clock.advance(COLLECTION_INTERVAL)
            await coordination.clock.asleep(COLLECTION_INTERVAL)
        assert stored(coordination, unused) == [True]
        coordination.clock.advance(COLLECTION_INTERVAL)
        await coordination.clock.asleep(COLLECTION_INTERVAL)
        assert stored(coordination, unused) == [False]


def _fail(*_: object) -> None:
    raise OSError("the disk is gone")
