"""Updates of small models: kept in memory until they are whole, stored together, accepted in one transaction."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import psycopg
import pytest
from safetensors.numpy import save

from contracts.blobs import chunk_of, put
from contracts.coordination import Coordination, coordinating
from fedround_server.blobs import SmallFile
from fedround_server.coordinator.uploads import arrival
from fedround_server.coordinator.uploads.receive import Incoming
from fedround_server.domain.chunk import Chunk
from fedround_server.domain.errors import (
    DigestMismatch,
    DiskFull,
    NotInCohort,
    TensorsMismatch,
    TrainingNotFound,
    UpdateExists,
    UpdateNotFinite,
    UploadIncomplete,
)
from fedround_server.domain.model import BlobRef
from fedround_server.domain.training import Training
from fedround_server.domain.update import NewUpdate, Update
from fedround_server.store import Store
from fedround_server.store.queries.submission import Admission


def file(number: float, **more: np.ndarray) -> bytes:
    return save({"layer/weight": np.full((2, 3), number, np.float32), "count": np.array(1), **more})


async def sent(data: bytes, pieces: int = 2) -> AsyncIterator[Chunk]:
    step = -(-len(data) // pieces)
    for start in range(0, len(data), step):
        yield chunk_of(data[start : start + step])


async def submit(
    one: Coordination,
    training: Training,
    user: str,
    data: bytes,
    chunks: AsyncIterator[Chunk] | None = None,
    number: int = 0,
    **changed: Any,
) -> Update:
    fields = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data), **changed}
    incoming = Incoming(user, chunks or sent(data), training_id=training.training_id, round=number, **fields)
    return await one.coordinator.submissions.submit(training.training_id, number, 1, {}, incoming)


@pytest.fixture
async def one(store: Store, tmp_path: Path) -> AsyncIterator[Coordination]:
    async with coordinating(store, tmp_path / "data") as one:
        yield one


async def test_each_takes_one_transaction(one: Coordination, verbs: list[str]) -> None:
    _, users, training = await one.running(3, target_num_updates=5)
    for number in range(2):
        verbs.clear()
        for user in users[:2]:
            await submit(one, training, user, file(number), number=number)
        wanted = ["submission.admit", "submission.submit_update"] if number == 0 else ["submission.submit_update"]
        assert verbs[-len(wanted) :] == wanted
        await submit(one, training, users[2], file(number), number=number)
        await one.until(users[0], training.training_id, lambda found, last=number: found.round > last)
    # A round is known from its first update on, and users from their first update on.
    assert verbs.count("submission.admit") == 1


async def test_when_a_round_begins_one_asks_for_all(one: Coordination, verbs: list[str]) -> None:
    _, users, training = await one.running(4, target_num_updates=12)
    for number in range(2):
        verbs.clear()
        await asyncio.gather(*(submit(one, training, user, file(number), number=number) for user in users))
        # In the first round, no user is known to see the training.
        assert verbs.count("submission.admit") == (4 if number == 0 else 1)
        await one.until(users[0], training.training_id, lambda found, last=number: found.round > last)
    assert not one.coordinator.submissions._asked


async def test_if_the_one_that_asks_for_all_is_rejected_the_others_ask(one: Coordination) -> None:
    _, users, training = await one.running(4, target_num_updates=8)
    for user in users:
        await submit(one, training, user, file(0))
    await one.until(users[0], training.training_id, lambda found: found.round > 0)
    await submit(one, training, users[0], file(1), number=1)
    # As if all came when the round begins, and that of the round before is known.
    items = one.context.admissions._trainings._items
    terms = items[training.training_id]
    items[training.training_id] = replace(terms, admission=replace(terms.admission, round=0))
    outcomes = await asyncio.gather(
        *(submit(one, training, user, file(2), number=1) for user in users), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [UpdateExists, Update, Update, Update]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_what_an_update_must_be_is_answered_while_the_training_is_locked(one: Coordination, store: Store) -> None:
    _, users, training = await one.running(1)
    with psycopg.connect(str(store._database._url)) as other:
        other.execute("SELECT * FROM training WHERE training_id = %s FOR UPDATE", (training.training_id,))
        blob = BlobRef(hashlib.sha256(file(0)).hexdigest(), len(file(0)))
        admission = await store.submissions.admit(NewUpdate(training.training_id, 0, users[0], blob, 1, {}))
        assert isinstance(admission, Admission)


async def test_those_who_have_subscribed_are_known(one: Coordination, verbs: list[str]) -> None:
    _, users, training = await one.running(3)
    await submit(one, training, users[0], file(0))
    subscribed = asyncio.Event()

    async def send(_: object) -> None:
        subscribed.set()

    async def greet() -> None:
        pass

    follow = one.coordinator.subscriptions.follow(users[1], training.training_id, {}, send, greet)
    subscription = asyncio.create_task(follow)
    await subscribed.wait()
    verbs.clear()
    await submit(one, training, users[1], file(1))
    assert "submission.submit_update" in verbs
    assert "submission.admit" not in verbs
    subscription.cancel()


async def test_those_that_arrive_together_are_stored_together(
    one: Coordination, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, users, training = await one.running(8)
    groups: list[int] = []
    store, go_on = one.context.blobs.store, threading.Event()

    def noted(files: Sequence[SmallFile]) -> Sequence[Exception | None]:
        groups.append(len(files))
        assert go_on.wait(30)
        return store(files)

    monkeypatch.setattr(one.context.blobs, "store", noted)
    submitted = [asyncio.create_task(submit(one, training, user, file(n))) for n, user in enumerate(users)]
    # While the first ones are being stored, the others arrive.
    while not groups or sum(groups) + len(one.coordinator.uploads._small._batch._waiting) < 8:
        await asyncio.sleep(0.01)
    go_on.set()
    found = await asyncio.gather(*submitted)
    assert len({update.update_id for update in found}) == sum(groups) == 8
    assert len(groups) <= 2
    for update, number in zip(found, range(8), strict=True):
        assert one.context.blobs.files.range(update.blob, 0, 1 << 20) == file(number)


async def test_one_that_is_rejected_does_not_concern_the_others(one: Coordination) -> None:
    _, users, training = await one.running(8)
    await submit(one, training, users[0], file(0))
    nan = file(float("nan"))
    outcomes = await asyncio.gather(
        submit(one, training, users[1], file(1)),
        submit(one, training, users[2], nan),
        submit(one, training, users[3], file(3), sha256="0" * 64),
        submit(one, training, users[4], file(4, surplus=np.zeros(1))),
        submit(one, training, users[5], file(5), sent(file(5)[:-1])),
        submit(one, training, users[6], file(6)),
        return_exceptions=True,
    )
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [Update, UpdateNotFinite, DigestMismatch, TensorsMismatch, UploadIncomplete, Update]
    stored = {path.name for path in one.context.blobs.files.objects.glob("*/*")}  # type: ignore[attr-defined]
    assert {hashlib.sha256(data).hexdigest() for data in (nan, file(4), file(5))}.isdisjoint(stored)


async def test_a_full_disk_is_told_to_each(one: Coordination, monkeypatch: pytest.MonkeyPatch) -> None:
    _, users, training = await one.running(3)
    full = DiskFull("the server's disk is full")
    with monkeypatch.context() as patch:
        patch.setattr(one.context.blobs, "store", lambda files: [full for _ in files])
        outcomes = await asyncio.gather(
            *(submit(one, training, user, file(1)) for user in users), return_exceptions=True
        )
    assert outcomes == [full] * 3
    assert (await submit(one, training, users[0], file(1))).num_examples == 1


async def test_what_is_wrong_with_the_file_is_told_to_those_whose_update_would_be_accepted(one: Coordination) -> None:
    _, users, training = await one.running(3)
    others = await one.world.users(1)
    await submit(one, training, users[0], file(0))
    wrong = save({"other": np.zeros(1, np.float32)})
    with pytest.raises(TensorsMismatch):
        await submit(one, training, users[1], wrong)
    # The round is known to the server now, and the training to these users only.
    with pytest.raises(TrainingNotFound):
        await submit(one, training, others[0], wrong)
    # The same update again is answered whatever its bytes are: it was accepted.
    again = await submit(one, training, users[0], file(0), sent(file(0)[:-1]))
    assert again.user_id == users[0]
    await one.coordinator.trainings.remove_clients(training.training_id, training.actor_id, [users[1]])
    with pytest.raises(NotInCohort):
        await submit(one, training, users[1], wrong)


async def test_a_lack_of_room_is_told_to_those_whose_update_would_be_accepted(
    one: Coordination, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, users, training = await one.running(3)
    monkeypatch.setattr(one.context.blobs, "free_bytes", lambda: 0)
    for user in users[:2]:
        with pytest.raises(DiskFull):
            await submit(one, training, user, file(0))
    await one.coordinator.trainings.remove_clients(training.training_id, training.actor_id, [users[1]])
    with pytest.raises(NotInCohort):
        await submit(one, training, users[1], file(0))


async def test_one_that_arrives_slowly_is_written_while_it_arrives(
    one: Coordination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "SECONDS", 0.01)
    _, users, training = await one.running(3)
    upload_id, data, go_on = str(uuid4()), file(1), asyncio.Event()

    async def halted() -> AsyncIterator[Chunk]:
        yield chunk_of(data[:50])
        await go_on.wait()
        yield chunk_of(data[50:])

    submitted = asyncio.create_task(submit(one, training, users[0], data, halted(), upload_id=upload_id))
    while await one.coordinator.uploads.committed_size(users[0], upload_id) < 50:
        await asyncio.sleep(0.01)
    go_on.set()
    assert (await submitted).blob.sha256 == hashlib.sha256(data).hexdigest()
    assert await one.coordinator.uploads.committed_size(users[0], upload_id) == 0


@pytest.mark.parametrize("resumable", [True, False])
async def test_what_has_arrived_of_one_that_is_cut_stays(one: Coordination, resumable: bool) -> None:
    _, users, training = await one.running(3)
    upload_id, data, begun = str(uuid4()) if resumable else None, file(1), asyncio.Event()

    async def halted() -> AsyncIterator[Chunk]:
        yield chunk_of(data[:50])
        begun.set()
        await asyncio.Event().wait()

    cut = asyncio.create_task(submit(one, training, users[0], data, halted(), upload_id=upload_id))
    await begun.wait()
    cut.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cut
    if upload_id is None:
        await submit(one, training, users[0], data)
    else:
        assert await one.coordinator.uploads.committed_size(users[0], upload_id) == 50
        await submit(one, training, users[0], data, sent(data[50:]), upload_id=upload_id, offset=50)
    assert one.coordinator.uploads.space.unfinished_bytes == 0


async def test_a_new_attempt_leaves_nothing_of_an_earlier_one(one: Coordination) -> None:
    _, users, training = await one.running(3)
    upload_id, data = str(uuid4()), file(1)
    with pytest.raises(UploadIncomplete):
        await submit(one, training, users[0], data, sent(data[:70]), upload_id=upload_id)
    assert await one.coordinator.uploads.committed_size(users[0], upload_id) == 70
    await submit(one, training, users[0], data, upload_id=upload_id)
    assert await one.coordinator.uploads.committed_size(users[0], upload_id) == 0
    assert one.coordinator.uploads.space.unfinished_bytes == 0


async def test_equal_files_of_several_users_are_stored_once(one: Coordination) -> None:
    _, users, training = await one.running(8)
    before = one.context.blobs.stored_bytes
    found = await asyncio.gather(*(submit(one, training, user, file(1)) for user in users))
    assert len({update.update_id for update in found}) == 8
    assert one.context.blobs.stored_bytes == before + len(file(1))
    put(one.context.blobs, b"something else")
