"""Files that nobody needs are collected, a few at a time, on both databases."""

import os
from pathlib import Path
from typing import Any

import pytest

from contracts.coordination import Coordination, coordinating, lose
from fedround_server.blobs import UNREFERENCED_SECONDS
from fedround_server.coordinator.housekeeping import COLLECTION_BATCH, COLLECTION_INTERVAL
from fedround_server.domain.model import BlobRef
from fedround_server.store import Store
from fedround_server.store.verbs.model import ModelVerbs


def old(desk: Coordination, content: str) -> BlobRef:
    """Stores a blob that came long ago."""
    with desk.context.blobs.upload("user", None, 0, "one") as writer:
        writer.write(content.encode())
        desk.context.blobs.adopt(writer.path, writer.blob)
    path = desk.context.blobs.path(writer.blob.sha256)
    os.utime(path, (path.stat().st_mtime - UNREFERENCED_SECONDS - 60,) * 2)
    return writer.blob


def here(desk: Coordination, *blobs: BlobRef) -> list[bool]:
    return [desk.context.blobs.path(blob.sha256).exists() for blob in blobs]


async def test_what_nobody_needs_goes_in_slices(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests_in_use, asked = ModelVerbs.digests_in_use, []

    async def counted(self: Any, among: list[str]) -> set[str]:
        asked.append(len(among))
        return await digests_in_use(self, among)

    monkeypatch.setattr(ModelVerbs, "digests_in_use", counted)
    async with coordinating(store, tmp_path) as desk:
        _, (client,), training = await desk.running(1)
        needed = old(desk, f"0 {client}")
        await desk.world.submit(training.training_id, 0, client)
        rubbish = [old(desk, f"rubbish {number}") for number in range(COLLECTION_BATCH + 10)]
        await desk.coordinator.recover()
        await desk.clock.asleep(COLLECTION_INTERVAL)
        assert here(desk, needed, *rubbish) == [True] + [False] * len(rubbish)
    assert asked == [COLLECTION_BATCH, 11]


async def test_a_file_that_two_updates_have_stays_until_neither_needs_it(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as desk:
        shared = old(desk, "the same weights")
        trainings = [await desk.running(3) for _ in range(2)]
        for _, (*clients, _), training in trainings:
            updates = [
                (await desk.world.submit(training.training_id, 0, client, "the same weights"))[0] for client in clients
            ]
            assert updates[0].update_id != updates[1].update_id
            assert {update.blob for update in updates} == {shared}
        await desk.coordinator.recover()
        await desk.clock.asleep(COLLECTION_INTERVAL)
        assert here(desk, shared) == [True]
        stays = []
        for actor, _, training in trainings:
            await desk.coordinator.trainings.remove(training.training_id, actor, force=True)
            desk.clock.advance(COLLECTION_INTERVAL)
            await desk.clock.asleep(COLLECTION_INTERVAL)
            stays += here(desk, shared)
        assert stays == [True, False]


async def test_a_collection_that_fails_is_followed_by_the_next(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with coordinating(store, tmp_path) as desk:
        rubbish = old(desk, "rubbish")
        lose(monkeypatch, ModelVerbs, "digests_in_use", committed=False)
        await desk.coordinator.recover()
        await desk.clock.asleep(COLLECTION_INTERVAL)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "iterdir", _fail)
            desk.clock.advance(COLLECTION_INTERVAL)
            await desk.clock.asleep(COLLECTION_INTERVAL)
        assert here(desk, rubbish) == [True]
        desk.clock.advance(COLLECTION_INTERVAL)
        await desk.clock.asleep(COLLECTION_INTERVAL)
        assert here(desk, rubbish) == [False]


def _fail(*_: object) -> None:
    raise OSError("the disk is gone")
