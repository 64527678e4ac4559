"""Rounds that wait: for slower participants, and for connections; on both databases."""

from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from contracts.blobs import put
from contracts.coordination import Coordination, coordinating, lose
from contracts.test_failures import current, fail
from contracts.world import World
from fedround_server.coordinator.housekeeping import RECONCILIATION_INTERVAL
from fedround_server.coordinator.openings import INTERVAL
from fedround_server.domain.cohort import Cohort
from fedround_server.domain.policy import OnMissed, RoundPolicy
from fedround_server.domain.rounds.round import RoundState, WaitRule
from fedround_server.domain.training import Goal, Selection, TrainingState
from fedround_server.domain.user import Role
from fedround_server.store import Store
from fedround_server.store.verbs.round import RoundVerbs

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
WAITING = RoundPolicy(2, wait_after_min=MINUTE)


async def test_a_round_that_has_enough_waits_and_closes_at_once_when_all_are_in(store: Store, world: World) -> None:
    actor, users, training = await world.running(3, round_policy=WAITING)
    training_id = training.training_id
    view = await store.rounds.explain(training_id, None, actor)
    assert (view.round.expected, view.enough, view.wait_rule) == (3, 2, WaitRule.MIN_UPDATES)
    assert not (await world.submit(training_id, 0, users[0]))[1]
    assert (await world.submit(training_id, 0, users[1]))[1]
    view = await store.rounds.explain(training_id, None, actor)
    assert (view.round.state, view.wait_rule) == (RoundState.OPEN, WaitRule.AFTER_MIN)
    assert view.round.wait_end is not None
    assert (await world.submit(training_id, 0, users[2]))[1]
    assert (await current(store, training_id)).state is RoundState.AGGREGATING


@pytest.mark.parametrize("early", [True, False])
async def test_a_round_closes_after_it_has_waited(store: Store, world: World, early: bool) -> None:
    _actor, users, training = await world.running(3, round_policy=WAITING)
    training_id = training.training_id
    for user in users[:2]:
        await world.submit(training_id, 0, user)
    end = (await current(store, training_id)).wait_end
    assert end is not None
    now = end - timedelta(microseconds=1) if early else end
    assert await store.rounds.judge(training_id, 0, due=False, now=now) is not early


async def test_a_member_that_fails_is_not_waited_for(store: Store, world: World) -> None:
    _, users, training = await world.running(3, round_policy=WAITING)
    for user in users[:2]:
        await world.submit(training.training_id, 0, user)
    assert await fail(world, training.training_id, users[2])


async def test_a_round_that_has_enough_no_longer_does_not_wait(store: Store, world: World) -> None:
    actor, users, training = await world.running(4, round_policy=WAITING)
    training_id = training.training_id
    for user in users[:2]:
        await world.submit(training_id, 0, user)
    await store.trainings.remove_clients(training_id, actor, [users[0]], world.now)
    assert (await current(store, training_id)).wait_end is None
    first = await world.submit(training_id, 0, users[2])
    assert first[1]
    assert (await current(store, training_id)).wait_end is not None


async def test_the_wait_follows_the_time_of_earlier_rounds(store: Store, world: World) -> None:
    policy = RoundPolicy(1, wait_after_min=timedelta(seconds=1), wait_fraction=0.5)
    _, users, training = await world.running(2, round_policy=policy, target_num_updates=3)
    training_id = training.training_id
    waits = []
    for number in range(2):
        await world.submit(training_id, number, users[0])
        found = await current(store, training_id)
        assert found.wait_end is not None
        waits.append((found.wait_end, found.open_time))
        await world.submit(training_id, number, users[1])
        await world.commit(training_id)
    view = await store.rounds.explain(training_id, 0, training.actor_id)
    assert view.round.done_time is not None
    took = view.round.done_time - view.round.open_time
    end, opened = waits[1]
    assert end - opened > took / 2


async def test_at_the_deadline_min_updates_are_enough(store: Store, world: World) -> None:
    policy = RoundPolicy(2, HOUR, on_missed=OnMissed.RETRY, max_retries=1, wait_after_min=2 * HOUR)
    actor, users, training = await world.running(3, round_policy=policy)
    training_id = training.training_id
    for user in users[:2]:
        await world.submit(training_id, 0, user)
    view = await store.rounds.explain(training_id, None, actor)
    assert view.when_missed is None
    assert await store.rounds.judge(training_id, 0, due=True, now=world.now)


async def test_an_evaluation_for_a_selection_waits_for_everybody_until_its_deadline(store: Store, world: World) -> None:
    policy = RoundPolicy(2, HOUR)
    spec = {"metric_names": ("score",), "selection": Selection("score", Goal.MAXIMIZE), "round_policy": policy}
    _actor, users, training = await world.running(3, **spec)
    training_id = training.training_id
    for user in users[:2]:
        await world.submit(training_id, 0, user)
    await world.commit(training_id)
    for user in users[:2]:
        assert not await world.report(training_id, 1, user, 1, score=1.0)
    found = await current(store, training_id)
    assert (found.state, found.arrived, found.expected, found.wait_end) == (RoundState.OPEN, 2, 3, None)
    assert await store.rounds.judge(training_id, 1, due=True, now=world.now)


async def test_a_timer_closes_a_round_that_has_waited_also_after_a_restart(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, users, training = await coordination.running(3, round_policy=WAITING, target_num_updates=2)
        training_id = training.training_id
        for user in users[:2]:
            await coordination.submit(training_id, 0, user)
        await coordination.clock.asleep(MINUTE)
        coordination.clock.advance(MINUTE)
        await coordination.until(actor, training_id, lambda found: found.model_version == 1)
        for user in users[:2]:
            await coordination.submit(training_id, 1, user)
    async with coordinating(store, tmp_path) as coordination:
        # It counts from when the round had enough.
        coordination.clock.advance(MINUTE / 2)
        await coordination.coordinator.recover()
        await coordination.clock.asleep(MINUTE / 2 + MINUTE)
        coordination.clock.advance(MINUTE / 2 + MINUTE)
        ended = await coordination.until(actor, training_id, lambda found: found.state.is_ended)
    assert (ended.state, ended.model_version) == (TrainingState.COMPLETED, 2)


async def test_a_wait_ends_although_the_clock_was_set_back(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, users, training = await coordination.running(3, round_policy=WAITING, target_num_updates=1)
        for user in users[:2]:
            await coordination.submit(training.training_id, 0, user)
        await coordination.clock.asleep(MINUTE)
        coordination.clock.jump(-90 * MINUTE)
        coordination.clock.advance(MINUTE)
        ended = await coordination.until(actor, training.training_id, lambda found: found.state.is_ended)
    assert ended.state is TrainingState.COMPLETED


async def tick(coordination: Coordination) -> None:
    """Lets the server look for rounds that it can open."""
    await coordination.clock.asleep(INTERVAL)
    coordination.clock.advance(INTERVAL)
    await coordination.clock.asleep(INTERVAL)


async def test_a_round_opens_once_enough_participants_are_connected(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        spec = {"cohort": Cohort(min_available=2), "target_num_updates": 2}
        actor, users, training = await coordination.running(3, **spec)
        training_id, presence, now = training.training_id, coordination.context.presence, coordination.clock.now
        status = coordination.coordinator.round_status
        with ExitStack() as first, ExitStack() as second:
            first.enter_context(presence.listening(users[0], now))
            await tick(coordination)
            found = await status.explain(training_id, None, actor)
            assert (found.view.round.state, found.num_connected, found.view.wanted) == (RoundState.PENDING, 1, 2)
            assert found.view.wait_rule is WaitRule.PARTICIPANTS
            second.enter_context(presence.listening(users[1], now))
            await tick(coordination)
            opened = await current(store, training_id)
            # Only connections are counted: everybody is asked.
            assert (opened.state, opened.members) == (RoundState.OPEN, 3)
            second.close()
            for user in users:
                await coordination.submit(training_id, 0, user)
            await coordination.until(actor, training_id, lambda found: found.model_version == 1)
            await tick(coordination)
            assert (await current(store, training_id)).state is RoundState.PENDING
            # A client that is registered meanwhile is counted, too.
            late = await coordination.world.user()
            with presence.listening(late, now):
                await tick(coordination)
                assert (await current(store, training_id)).state is RoundState.PENDING
                await coordination.coordinator.trainings.register(training_id, actor, [late])
                await tick(coordination)
                assert (await current(store, training_id)).members == 4


async def test_participants_are_told_at_once_of_a_round_whose_opening_got_no_answer(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        _, users, training = await coordination.running(1, cohort=Cohort(min_available=1))
        training_id, context = training.training_id, coordination.context
        lose(monkeypatch, RoundVerbs, "open", committed=True)
        with context.presence.listening(users[0], coordination.clock.now), context.hub.waiter() as waiter:
            waiter.follow([training_id])
            await tick(coordination)
            assert (await current(store, training_id)).state is RoundState.OPEN
            await tick(coordination)
            assert await waiter.wait(0) == {training_id}


async def test_a_pending_round_opens_after_a_connected_participant_got_the_labels(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        put(coordination.context.blobs, b"zeros")
        actor, labelled, other = [
            await coordination.world.user(Role.ACTOR),
            await coordination.world.user(gpu="yes"),
            await coordination.world.user(),
        ]
        cohort = Cohort(labels={"gpu": "yes"}, available_only=True)
        made = await coordination.world.training(actor, [labelled, other], cohort=cohort)
        training_id = made.training_id
        await coordination.coordinator.trainings.start(training_id, actor, None)
        with coordination.context.presence.listening(other, coordination.clock.now):
            await tick(coordination)
            assert (await current(store, training_id)).state is RoundState.PENDING
            await coordination.coordinator.users.set_labels(other, {"gpu": "yes"})
            await coordination.clock.asleep(RECONCILIATION_INTERVAL)
            coordination.clock.advance(RECONCILIATION_INTERVAL)
            await coordination.clock.asleep(RECONCILIATION_INTERVAL)
            await tick(coordination)
        view = await store.rounds.explain(training_id, None, actor)
    assert [one.user_id for one in view.members] == [other]


async def test_the_next_round_opens_at_once_if_its_participants_are_connected(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        spec = {"cohort": Cohort(min_available=2), "target_num_updates": 2}
        presence, now = coordination.context.presence, coordination.clock.now
        actor, users, training = await coordination.running(2, **spec)
        with ExitStack() as connections:
            for user in users:
                connections.enter_context(presence.listening(user, now))
            await tick(coordination)
            for user in users:
                await coordination.submit(training.training_id, 0, user)
            # The clock stands still: nothing looks at pending rounds.
            await coordination.until(actor, training.training_id, lambda found: found.model_version == 1)
            await coordination.until(actor, training.training_id, lambda found: found.updates_expected == 2)
            found = await current(store, training.training_id)
            assert (found.number, found.state) == (1, RoundState.OPEN)


async def test_a_restarted_server_waits_for_connections_again(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        cohort = Cohort(available_only=True, size=1)
        actor, users, training = await coordination.running(2, cohort=cohort)
    training_id = training.training_id
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        await tick(coordination)
        assert (await current(store, training_id)).state is RoundState.PENDING
        with coordination.context.presence.listening(users[1], coordination.clock.now):
            await tick(coordination)
        view = await store.rounds.explain(training_id, None, actor)
    assert [one.user_id for one in view.members] == [users[1]]
    assert (view.round.eligible, view.round.chosen) == (1, 1)
