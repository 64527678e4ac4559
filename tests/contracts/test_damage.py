"""Files that are damaged or lost on the server's disk between being stored and being used, on both databases."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from aggregations import fed_dc
from contracts.audits import recorded
from contracts.blobs import put
from contracts.coordination import Coordination
from contracts.coordination import coordinating as coordinating_anything
from contracts.world import blob
from damage import flip
from fedround_server.blobs import BLOCK_BYTES
from fedround_server.coordinator.aggregation import DAMAGE_DELAY, RETRY_DELAY
from fedround_server.coordinator.served_files import ServedFile
from fedround_server.domain.cohort import Cohort
from fedround_server.domain.errors import ModelDamaged, RoundNotFound
from fedround_server.domain.event import RoundClosed, RoundExtended, RoundStarted, UpdateAccepted, UpdateLost
from fedround_server.domain.model import BlobRef
from fedround_server.domain.policy import OnMissed, RoundPolicy
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import Training, TrainingState
from fedround_server.engine.executor import WorkerLost
from fedround_server.store import Store

KINDS_OF_DAMAGE: dict[str, Callable[[Path], None]] = {
    "flipped": lambda path: flip(path, 3),
    "removed": Path.unlink,
    "emptied": lambda path: flip_to(path, b""),
}
HOUR = timedelta(hours=1)


def flip_to(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


@asynccontextmanager
async def coordinating(store: Store, folder: Path) -> AsyncIterator[Coordination]:
    """A coordinator whose engine reads the files of its jobs."""
    async with coordinating_anything(store, folder) as coordination:
        coordination.engine.reads = True
        yield coordination


def file_of(coordination: Coordination, number: int, user: str) -> Path:
    """The file of the update that `Coordination.submit` makes for a user."""
    return coordination.context.blobs.files.local_path(blob(f"{number} {user}"))


def model_file(coordination: Coordination) -> Path:
    """The file of the model that trainings start from."""
    return coordination.context.blobs.files.local_path(blob("zeros"))


async def payloads(store: Store, training_id: str, user_id: str) -> list[Any]:
    return [event.payload for event in (await store.events.poll(training_id, user_id, 0, 1000)).events]


async def damaged_round(
    coordination: Coordination, clients: int, damage: Callable[[Path], None], lost: int = 1, **spec: Any
) -> tuple[str, list[str], Training]:
    """A round whose updates are all in, and that has lost the first of them when it is aggregated."""
    actor, users, training = await coordination.running(clients, target_num_updates=1, **spec)
    expected = spec.get("round_policy", RoundPolicy()).min_updates or clients
    for user in users[:expected]:
        if user == users[expected - 1]:
            for other in users[:lost]:
                if other != user:
                    damage(file_of(coordination, 0, other))
            if lost == expected:
                coordination.engine.may_end.clear()
        await coordination.submit(training.training_id, 0, user)
    if lost == expected:
        damage(file_of(coordination, 0, users[expected - 1]))
        coordination.engine.may_end.set()
    return actor, users, training


async def reopened(coordination: Coordination, training_id: str, actor: str, lost: int = 1) -> None:
    """Waits until a round waits again for the updates that it lost."""
    with coordination.context.hub.waiter() as waiter:
        waiter.follow([training_id])
        while (
            sum(isinstance(one, UpdateLost) for one in await payloads(coordination.context.store, training_id, actor))
            < lost
        ):
            assert await waiter.wait(100)


@pytest.mark.parametrize("damage", KINDS_OF_DAMAGE.values(), ids=KINDS_OF_DAMAGE)
async def test_a_round_waits_again_for_an_update_that_was_damaged(
    store: Store, tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, (hit, other), training = await damaged_round(coordination, 2, damage)
        training_id = training.training_id
        await reopened(coordination, training_id, actor)
        found = await coordination.coordinator.round_status.explain(training_id, None, actor)
        assert (found.view.round.state, found.view.round.arrived, found.view.round.expected) == (RoundState.OPEN, 1, 2)
        missing = {one.member.user_id: one.member for one in found.members if one.member.arrive_time is None}
        assert set(missing) == {hit}
        (rejected,) = missing[hit].rejected_updates
        assert (rejected.reason, rejected.count) == ("UPDATE_LOST", 1)
        assert f"the file objects/{blob(f'0 {hit}').sha256[:2]}/{blob(f'0 {hit}').sha256} " in caplog.text
        # Only the one that was hit is asked anew.
        started = [
            sum(isinstance(one, RoundStarted) for one in await payloads(store, training_id, user))
            for user in (hit, other)
        ]
        assert started == [2, 1]
        await coordination.submit(training_id, 0, hit)
        after = await coordination.until(actor, training_id, lambda training: training.state.is_ended)
    assert (after.state, after.model_version) == (TrainingState.COMPLETED, 1)
    log = await payloads(store, training_id, actor)
    accepted = [one.update_id for one in log if isinstance(one, UpdateAccepted)]
    (lost,) = [one for one in log if isinstance(one, UpdateLost)]
    assert lost == UpdateLost(accepted[0], 0, hit, 1, 2)
    assert [one.num_updates for one in log if isinstance(one, RoundClosed)] == [2]
    assert sum(isinstance(one, RoundExtended) for one in log) == 1
    # The ledger supersedes the lost update, and counts the other two.
    superseded = await recorded(store, "updates_superseded")
    assert [(one["reason"], one["update_ids"]) for one in superseded] == [("file_damaged", [accepted[0]])]
    (counted,) = await recorded(store, "updates_counted")
    assert {one["update_id"] for one in counted["updates"]} == set(accepted[1:])


@pytest.mark.parametrize("damage", KINDS_OF_DAMAGE.values(), ids=KINDS_OF_DAMAGE)
async def test_a_damaged_update_is_assigned_to_nobody(
    store: Store, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        chain = fed_dc(daisy_period=1, aggregation_period=2)
        actor, (hit, *others), training = await damaged_round(coordination, 3, damage, aggregation=chain)
        await reopened(coordination, training.training_id, actor)
        with pytest.raises(RoundNotFound):
            await store.rounds.assigned(training.training_id, 1, others[0])
        await coordination.submit(training.training_id, 0, hit)
        await coordination.until(actor, training.training_id, lambda training: training.round == 1)
        await store.rounds.assigned(training.training_id, 1, others[0])
    (superseded,) = await recorded(store, "updates_superseded")
    assert superseded["reason"] == "file_damaged"


async def test_all_damaged_updates_of_a_round_are_asked_for_at_once(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, users, training = await damaged_round(coordination, 3, Path.unlink, lost=3)
        await reopened(coordination, training.training_id, actor, 3)
        current = await store.rounds.current(training.training_id)
        assert current is not None
        assert (current.state, current.arrived, current.attempt) == (RoundState.OPEN, 0, 2)
        for user in users:
            await coordination.submit(training.training_id, 0, user)
        after = await coordination.until(actor, training.training_id, lambda training: training.state.is_ended)
    assert after.state is TrainingState.COMPLETED


async def test_another_participant_may_take_the_place_of_a_lost_update(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, users, training = await damaged_round(
            coordination, 3, Path.unlink, round_policy=RoundPolicy(min_updates=2)
        )
        await reopened(coordination, training.training_id, actor)
        await coordination.submit(training.training_id, 0, users[2])
        after = await coordination.until(actor, training.training_id, lambda training: training.state.is_ended)
    assert after.state is TrainingState.COMPLETED
    (counted,) = await recorded(store, "updates_counted")
    assert [one["participant_id"] for one in counted["updates"]] == users[1:]


async def test_a_round_that_lost_an_update_has_a_new_deadline(store: Store, tmp_path: Path) -> None:
    policy = RoundPolicy(deadline=HOUR, on_missed=OnMissed.FAIL)
    async with coordinating(store, tmp_path) as coordination:
        coordination.engine.may_end.clear()
        actor, (hit, _), training = await damaged_round(coordination, 2, Path.unlink, round_policy=policy)
        # The deadline of the first attempt passes while the round is closed.
        coordination.clock.advance(2 * HOUR)
        coordination.engine.may_end.set()
        await reopened(coordination, training.training_id, actor)
        await coordination.clock.asleep(coordination.clock.now() + HOUR)
        await coordination.submit(training.training_id, 0, hit)
        after = await coordination.until(actor, training.training_id, lambda training: training.state.is_ended)
        assert after.state is TrainingState.COMPLETED
        actor, _, training = await damaged_round(coordination, 2, Path.unlink, round_policy=policy)
        await reopened(coordination, training.training_id, actor)
        await coordination.clock.asleep(coordination.clock.now() + HOUR)
        coordination.clock.advance(HOUR)
        after = await coordination.until(actor, training.training_id, lambda training: training.state.is_ended)
    assert after.failure is not None
    assert after.failure.reason == "DEADLINE_MISSED"


async def test_a_round_does_not_wait_for_a_lost_update_whose_participant_has_left(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        coordination.engine.may_end.clear()
        actor, (hit, other), training = await damaged_round(coordination, 2, Path.unlink)
        await coordination.coordinator.trainings.remove_clients(training.training_id, actor, [hit])
        coordination.engine.may_end.set()
        after = await coordination.until(actor, training.training_id, lambda training: training.state.is_ended)
    assert after.state is TrainingState.COMPLETED
    (counted,) = await recorded(store, "updates_counted")
    assert [one["participant_id"] for one in counted["updates"]] == [other]


async def test_an_aggregation_waits_until_a_damaged_model_is_restored(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, (client,), training = await coordination.running(1, target_num_updates=1)
        flip(model_file(coordination), 2)
        await coordination.submit(training.training_id, 0, client)
        for _ in range(3):
            await coordination.clock.asleep(DAMAGE_DELAY)
            assert (await store.trainings.get(training.training_id, actor)).state is TrainingState.ONGOING
            found = await coordination.coordinator.round_status.explain(training.training_id, None, actor)
            assert found.damage is not None
            assert found.damage.startswith(
                f"the file objects/{blob('zeros').sha256[:2]}/{blob('zeros').sha256} is damaged"
            )
            assert "restored from a backup" in found.damage
            assert found.damage in caplog.text
            coordination.clock.advance(DAMAGE_DELAY)
        await coordination.clock.asleep(DAMAGE_DELAY)
        put(coordination.context.blobs, b"zeros")
        coordination.clock.advance(DAMAGE_DELAY)
        after = await coordination.until(actor, training.training_id, lambda training: training.state.is_ended)
    assert (after.state, after.model_version) == (TrainingState.COMPLETED, 1)


async def test_a_file_that_ends_the_worker_is_found(store: Store, tmp_path: Path) -> None:
    """A disk that cannot read a file ends the process that has mapped it."""
    async with coordinating(store, tmp_path) as coordination:
        coordination.engine.error = WorkerLost("the worker died 3 times")
        actor, (hit, _), training = await damaged_round(coordination, 2, Path.unlink)
        await reopened(coordination, training.training_id, actor)
        coordination.engine.error = None
        await coordination.submit(training.training_id, 0, hit)
        after = await coordination.until(actor, training.training_id, lambda training: training.state.is_ended)
    assert after.state is TrainingState.COMPLETED


async def test_an_intact_file_with_wrong_checksums_gets_the_right_ones(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, (client,), training = await coordination.running(1, target_num_updates=1)
        wrong = BlobRef(blob("zeros").sha256, 5, b"wron")
        await store.models.keep_checksums(wrong)
        await coordination.submit(training.training_id, 0, client)
        await coordination.clock.asleep(RETRY_DELAY)
        coordination.clock.advance(RETRY_DELAY)
        await coordination.until(actor, training.training_id, lambda training: training.state.is_ended)
        version = await store.models.get_version(training.model_id, 0, actor)
    assert version.blob.checksums == put(coordination.context.blobs, b"zeros").checksums


async def test_a_file_of_an_earlier_version_is_verified_when_it_is_read_first(store: Store, tmp_path: Path) -> None:
    data = bytes(range(256)) * (BLOCK_BYTES // 256 + 1)
    async with coordinating(store, tmp_path) as coordination:
        models = coordination.coordinator.models
        actor, _, training = await coordination.running(1)
        (old,) = [put(coordination.context.blobs, b"zeros")]
        known = await store.models.get_version(training.model_id, 0, actor)
        assert known.blob.checksums == b""
        assert [chunk.data async for chunk in models.read(ServedFile.of("it", 0, known.blob), 0)] == [b"zeros"]
        known = await store.models.get_version(training.model_id, 0, actor)
        assert known.blob.checksums == old.checksums
        other = put(coordination.context.blobs, data)
        flip(coordination.context.blobs.files.local_path(other), -1)
        with pytest.raises(ModelDamaged, match=f"it cannot be read: on the server, the file objects/.*{other.sha256}"):
            [chunk async for chunk in models.read(ServedFile.of("it", 0, BlobRef(other.sha256, len(data))), 0)]
        chunks = models.read(ServedFile.of("it", 0, other), 0)
        assert (await anext(chunks)).data == data[:BLOCK_BYTES]
        with pytest.raises(ModelDamaged) as raised:
            await anext(chunks)
    assert raised.value.metadata["file"] == f"objects/{other.sha256[:2]}/{other.sha256}"


async def test_a_round_that_lost_an_update_asks_only_who_is_connected(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, users, training = await coordination.running(3, cohort=Cohort(size=2, available_only=True))
        training_id, presence, now = training.training_id, coordination.context.presence, coordination.clock.now
        with presence.listening(users[0], now), presence.listening(users[1], now):
            await coordination.coordinator.rounds.openings.look(training_id)
            await coordination.submit(training_id, 0, users[0])
            KINDS_OF_DAMAGE["removed"](file_of(coordination, 0, users[0]))
            await coordination.submit(training_id, 0, users[1])
            await reopened(coordination, training_id, actor)
        view = await store.rounds.explain(training_id, None, actor)
        # One update is missing, and the only one that could be asked in addition is away.
        assert {member.user_id for member in view.members} == set(users[:2])
