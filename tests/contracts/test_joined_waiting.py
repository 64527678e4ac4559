"""Submissions that come while their training is locked, as by another replica: they are accepted together."""

import asyncio
from pathlib import Path
from typing import Any

import psycopg
import pytest

from calls import until
from contracts.audits import check
from contracts.coordination import coordinating
from contracts.test_joined import Submit, submit
from contracts.world import World
from fedround_server.domain.errors import RoundNotOpen, TrainingNotFound
from fedround_server.store import Store
from fedround_server.store.db.group_commit import Transactions

pytestmark = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


async def test_those_that_come_while_the_training_is_locked_share_one_transaction(
    world: World, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, users, training = await world.running(9)
    begun: list[None] = []
    begin_one = Transactions.begin

    def noted(self: Transactions) -> Any:
        begun.append(None)
        return begin_one(self)

    with psycopg.connect(store._database._url) as other, monkeypatch.context() as patch:
        other.execute("SELECT * FROM training WHERE training_id = %s FOR UPDATE", (training.training_id,))
        patch.setattr(Transactions, "begin", noted)
        calls = [submit(world, training, users, Submit(0))]
        await asyncio.to_thread(wait_for_a_lock, store._database._url)
        calls += [submit(world, training, users, Submit(user)) for user in range(1, 8)]
        await asyncio.sleep(0)
        assert begun == [None]
        other.commit()
        outcomes = await asyncio.gather(*calls)
        assert begun == [None]
    assert [closed for _, closed in outcomes] == [False] * 8
    assert (await store.trainings.get(training.training_id, actor)).updates_arrived == 8
    await check(store)


async def test_those_that_wait_for_others_of_their_group_are_run_before_the_database_is_closed(
    world: World, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, users, training = await world.running(9)
    monkeypatch.setattr("fedround_server.store.db.run.MAX_GROUP", 1)
    database = store._database
    with psycopg.connect(database._url) as other:
        other.execute("SELECT * FROM training WHERE training_id = %s FOR UPDATE", (training.training_id,))
        calls = [submit(world, training, users, Submit(user)) for user in range(3)]
        await asyncio.to_thread(wait_for_a_lock, database._url)
        await asyncio.to_thread(until, database._executor._work_queue.empty)
        closing = asyncio.create_task(asyncio.to_thread(database.close))
        await asyncio.to_thread(until, lambda: database._executor._shutdown)
        other.commit()
        outcomes = await asyncio.gather(*calls)
        await closing
    assert [closed for _, closed in outcomes] == [False] * 3


async def test_callers_are_answered_although_others_come(
    world: World, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, users, training = await world.running(60)
    monkeypatch.setattr("fedround_server.store.db.run.MAX_GROUP", 8)
    accepted = submit(world, training, users, Submit(0))
    await accepted
    sizes: list[int] = []
    run = Transactions.run

    def noted(self: Transactions, calls: Any) -> Any:
        found = run(self, calls)
        sizes.append(len(found))
        return found

    with psycopg.connect(store._database._url) as other, monkeypatch.context() as patch:
        other.execute("SELECT * FROM training WHERE training_id = %s FOR UPDATE", (training.training_id,))
        patch.setattr(Transactions, "run", noted)
        # Each fourth one repeats an update that was accepted, and cannot be joined.
        calls = [submit(world, training, users, Submit(user * (user % 4 > 0))) for user in range(1, 59)]
        await asyncio.to_thread(wait_for_a_lock, store._database._url)
        other.commit()
        await asyncio.gather(*calls)
    assert sum(sizes) == 58
    assert max(sizes) <= 8
    assert (await store.trainings.get(training.training_id, actor)).updates_arrived == 45
    await check(store)


async def test_who_takes_no_part_waits_for_nothing(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as one:
        _, (user, _), training = await one.running(2)
        outsider, report = await one.world.user(), one.coordinator.submissions.submit_metrics
        with psycopg.connect(str(store._database._url)) as other:
            other.execute("SELECT * FROM training WHERE training_id = %s FOR UPDATE", (training.training_id,))
            waiting = asyncio.create_task(report(training.training_id, 0, user, 1, {}))
            await asyncio.to_thread(wait_for_a_lock, str(store._database._url))
            with pytest.raises(TrainingNotFound):
                await report(training.training_id, 0, outsider, 1, {})
            assert not waiting.done()
            other.commit()
            # The round takes updates.
            with pytest.raises(RoundNotOpen):
                await waiting


def wait_for_a_lock(url: str) -> None:
    """Waits until a session waits for the lock of another one."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(url, autocommit=True) as connection:
        until(lambda: connection.execute(waiting).fetchone() == (1,))
