"""Rounds that are left behind when the database fails are taken up, once; on both databases."""

import asyncio
import logging
from datetime import timedelta
from pathlib import Path

import pytest

from contracts.coordination import Coordination, coordinating, lose
from contracts.world import World
from fedround_server.coordinator.aggregation import RETRY_DELAY
from fedround_server.coordinator.housekeeping import RECONCILIATION_INTERVAL
from fedround_server.domain.errors import StoreUnavailable
from fedround_server.domain.policy import RoundPolicy
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import TrainingState
from fedround_server.store import Store
from fedround_server.store.verbs.round import RoundVerbs
from fedround_server.store.verbs.submission import SubmissionVerbs
from fedround_server.store.verbs.training import TrainingVerbs

DEADLINE = RoundPolicy(deadline=timedelta(minutes=1))


async def reconcile(coordination: Coordination) -> None:
    """Advances the clock to the next reconciliation."""
    await coordination.clock.asleep(RECONCILIATION_INTERVAL)
    coordination.clock.advance(RECONCILIATION_INTERVAL)


def timers(training_id: str) -> int:
    return sum(task.get_name() == f"deadline {training_id}" for task in asyncio.all_tasks())


async def test_a_round_whose_close_gets_no_answer_is_aggregated(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        actor, (client,), training = await coordination.running(1)
        lose(monkeypatch, SubmissionVerbs, "submit_update", committed=True)
        with pytest.raises(StoreUnavailable):
            await coordination.submit(training.training_id, 0, client)
        # A repeated update gets its receipt, and closes nothing.
        await coordination.submit(training.training_id, 0, client)
        await reconcile(coordination)
        await coordination.until(actor, training.training_id, lambda training: training.round == 1)


@pytest.mark.parametrize(("verb", "committed"), [("commit", True), ("current", False)])
async def test_the_next_rounds_deadline_holds_although_its_opening_got_no_answer(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, committed: bool
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        actor, (client,), training = await coordination.running(1, round_policy=DEADLINE)
        # So that the next round has another deadline than this one.
        coordination.clock.advance(timedelta(seconds=1))
        lose(monkeypatch, RoundVerbs, verb, committed=committed)
        await coordination.submit(training.training_id, 0, client)
        if committed:
            await coordination.clock.asleep(RETRY_DELAY)
            coordination.clock.advance(RETRY_DELAY)
        await coordination.until(actor, training.training_id, lambda training: training.round == 1)
        await reconcile(coordination)
        (left,) = await store.rounds.unfinished()
        assert left.deadline is not None
        await coordination.clock.asleep(left.deadline)
        coordination.clock.advance(timedelta(minutes=1))
        after = await coordination.until(actor, training.training_id, lambda training: training.state.is_ended)
    assert after.failure is not None
    assert after.failure.reason == "DEADLINE_MISSED"


async def test_a_start_that_gets_no_answer_has_its_deadline(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        lose(monkeypatch, TrainingVerbs, "start", committed=True)
        with pytest.raises(StoreUnavailable):
            await coordination.running(1, round_policy=DEADLINE)
        (left,) = await store.rounds.unfinished()
        assert left.deadline is not None
        await reconcile(coordination)
        await coordination.clock.asleep(left.deadline)


async def test_subscribers_are_woken_for_a_start_that_got_no_answer(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        lose(monkeypatch, TrainingVerbs, "start", committed=True)
        with pytest.raises(StoreUnavailable):
            await coordination.running(1)
        (left,) = await store.rounds.unfinished()
        with coordination.context.hub.waiter() as waiter:
            waiter.follow([left.training_id])
            await coordination.coordinator.rounds.reconcile()
            assert await waiter.wait(0) == {left.training_id}
            # Only once.
            await coordination.coordinator.rounds.reconcile()
            assert not await waiter.wait(0)


async def test_a_start_succeeds_although_its_deadline_cannot_be_read(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        lose(monkeypatch, RoundVerbs, "current", committed=False)
        _, _, training = await coordination.running(1, round_policy=DEADLINE)
        assert training.state is TrainingState.ONGOING
        await coordination.coordinator.rounds.reconcile()
        assert timers(training.training_id) == 1


async def test_subscribers_are_woken_for_an_end_that_got_no_answer(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, (client,), training = await coordination.running(1, target_num_updates=1)
        lose(monkeypatch, RoundVerbs, "commit", committed=True)
        with coordination.context.hub.waiter() as waiter:
            await coordination.submit(training.training_id, 0, client)
            await coordination.clock.asleep(RETRY_DELAY)
            assert (await store.trainings.get(training.training_id, actor)).state is TrainingState.COMPLETED
            waiter.follow([training.training_id])
            coordination.clock.advance(RETRY_DELAY)
            assert await waiter.wait(30)


async def test_reconciliation_goes_on_after_the_database_did_not_answer(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        actor, (client,), training = await coordination.running(1)
        # Without the coordinator: only reconciliation can find it.
        await coordination.world.submit(training.training_id, 0, client)
        lose(monkeypatch, RoundVerbs, "unfinished", committed=False)
        await reconcile(coordination)
        await reconcile(coordination)
        await coordination.until(actor, training.training_id, lambda training: training.round == 1)


async def test_reconciliation_does_not_touch_what_is_under_way(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        rounds = coordination.coordinator.rounds
        _, _, waiting = await coordination.running(2, round_policy=DEADLINE)
        actor, (client,), aggregating = await coordination.running(1, target_num_updates=1, round_policy=DEADLINE)
        coordination.engine.may_end.clear()
        await coordination.submit(aggregating.training_id, 0, client)
        for _ in range(3):
            await rounds.reconcile()
        assert timers(waiting.training_id) == 1
        coordination.engine.may_end.set()
        await coordination.until(actor, aggregating.training_id, lambda training: training.state.is_ended)
        await rounds.reconcile()
        assert len(coordination.engine.jobs) == 1


async def test_reconciliation_needs_one_query_for_any_number_of_rounds(
    store: Store, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        await world.running(2)
    with caplog.at_level(logging.DEBUG, "peewee"):
        assert len(await store.rounds.unfinished()) == 5
    assert sum("SELECT" in record.getMessage() for record in caplog.records) == 1


async def test_recovery_takes_up_closed_rounds_and_ends_late_ones(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path / "one") as coordination:
        _, _, late = await coordination.running(1, round_policy=DEADLINE)
        actor, (client,), closed = await coordination.running(1, round_policy=RoundPolicy(deadline=timedelta(hours=1)))
        await coordination.world.submit(closed.training_id, 0, client)
    async with coordinating(store, tmp_path / "two") as coordination:
        coordination.clock.advance(timedelta(minutes=2))
        await coordination.coordinator.recover()
        assert [left.training_id for left in await store.rounds.unfinished()] == [closed.training_id]
        await coordination.until(actor, closed.training_id, lambda training: training.round == 1)
        assert (await store.rounds.current(late.training_id)).state is RoundState.ABANDONED  # type: ignore[union-attr]
