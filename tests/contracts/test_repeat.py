"""Rounds that miss their deadline and are repeated; on both databases."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from aggregations import fed_dc
from contracts.coordination import Coordination, coordinating, lose
from contracts.world import World, blob
from fedround_server.blobs import StagedRef
from fedround_server.blobs.writer import LocalWriter
from fedround_server.coordinator.aggregation import RETRY_DELAY
from fedround_server.domain.errors import NotInCohort, UpdateExists
from fedround_server.domain.event import Event, RoundExtended, RoundStarted, TrainingStarted
from fedround_server.domain.policy import OnMissed, RoundPolicy
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.kind import RoundKind
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import TrainingState
from fedround_server.domain.uncertainty import Swag
from fedround_server.store import Store
from fedround_server.store.verbs.round import RoundVerbs

MINUTE = timedelta(minutes=1)


def policy(retries: int = 2, min_updates: int = 0) -> RoundPolicy:
    return RoundPolicy(min_updates, MINUTE, on_missed=OnMissed.RETRY, max_retries=retries)


async def miss(world: World, training_id: str, number: int = 0, attempt: int = 1) -> bool:
    """Lets a round's deadline pass."""
    return await world.store.rounds.judge(training_id, number, due=True, now=world.now, attempt=attempt)


async def read(store: Store, training_id: str, user: str) -> list[Event]:
    """What a new subscription of a user begins with."""
    return list((await store.events.poll(training_id, user, None, 100)).events)


async def test_a_repeated_round_keeps_its_number_and_its_updates(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2, round_policy=policy(), target_num_updates=1)
    accepted, _ = await world.submit(training.training_id, 0, first)
    before = await store.rounds.current(training.training_id)
    assert not await miss(world, training.training_id)
    after = await store.rounds.current(training.training_id)
    assert before is not None
    assert after is not None
    assert (after.state, after.number, after.attempt, after.arrived, after.expected) == (RoundState.OPEN, 0, 2, 1, 2)
    assert after.open_time == before.open_time
    assert before.deadline is not None
    assert after.deadline is not None
    assert after.deadline > before.deadline
    # The same again is the same receipt, and another one is rejected, whatever the try.
    assert await world.submit(training.training_id, 0, first) == (accepted, False)
    with pytest.raises(UpdateExists):
        await world.submit(training.training_id, 0, first, "another")
    assert (await world.submit(training.training_id, 0, second))[1]
    task = await store.rounds.find_aggregation(training.training_id)
    assert task is not None
    assert [update.user_id for update in task.updates] == [first, second]
    assert await world.commit(training.training_id)
    assert (await store.trainings.get(training.training_id, actor)).state is TrainingState.COMPLETED


async def test_a_repeat_does_not_forget_how_far_an_update_has_come(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        _, (client, _), training = await coordination.running(2, round_policy=policy())
        ref, uploads, training_id = StagedRef("update"), coordination.coordinator.uploads, training.training_id
        current = await store.rounds.current(training_id)
        assert current is not None
        with LocalWriter(ref, tmp_path / "update") as writer:
            writer.write(b"half of it")
            with uploads.progress.watch(training_id, 0, client, ref, writer):
                await coordination.clock.asleep(MINUTE)
                coordination.clock.advance(MINUTE)
                # The next try's timer.
                await coordination.clock.asleep(MINUTE)
                assert uploads.progress.bytes_arrived(training_id, 0, client) == len(b"half of it")
    after = await store.rounds.current(training_id)
    assert after is not None
    assert after.attempt == 2


async def test_the_deadline_of_an_earlier_try_does_nothing(store: Store, world: World) -> None:
    _, _, training = await world.running(2, round_policy=policy())
    await miss(world, training.training_id)
    for attempt in (0, 1, 3):
        await miss(world, training.training_id, attempt=attempt)
        current = await store.rounds.current(training.training_id)
        assert current is not None
        assert (current.state, current.attempt) == (RoundState.OPEN, 2)


async def test_after_its_last_try_a_round_ends_the_training_and_names_the_missing(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2, round_policy=policy(retries=2))
    await world.submit(training.training_id, 0, first)
    for attempt in (1, 2, 3):
        assert (await store.trainings.get(training.training_id, actor)).state is TrainingState.ONGOING
        await miss(world, training.training_id, attempt=attempt)
    after = await store.trainings.get(training.training_id, actor)
    name = (await store.users.get(second)).name
    assert after.state is TrainingState.ERROR
    assert after.failure is not None
    assert after.failure.reason == "DEADLINE_MISSED"
    assert after.failure.actor_message == (
        f"the round reached its deadline 3 times, at last with 1 of 2 updates; missing: {name}"
    )
    assert name not in after.failure.message


async def test_who_was_registered_meanwhile_joins_and_who_left_stays_out(store: Store, world: World) -> None:
    actor, (first, second, third), training = await world.running(3, round_policy=policy())
    training_id = training.training_id
    await world.submit(training_id, 0, first)
    late = await world.user()
    await store.trainings.remove_clients(training_id, actor, [first, second], world.now)
    await store.trainings.register(training_id, actor, [first, second, late], world.now)
    await miss(world, training_id)
    after = await store.rounds.current(training_id)
    assert after is not None
    assert (after.arrived, after.expected) == (0, 2)
    with pytest.raises(NotInCohort):
        await world.submit(training_id, 0, second)
    assert not (await world.submit(training_id, 0, late))[1]
    assert (await world.submit(training_id, 0, third))[1]
    task = await store.rounds.find_aggregation(training_id)
    assert task is not None
    assert {update.user_id for update in task.updates} == {late, third}


async def test_what_each_hears_of_it(store: Store, world: World) -> None:
    actor, (member,), training = await world.running(1, round_policy=policy())
    training_id = training.training_id
    late = await world.user()
    await store.trainings.register(training_id, actor, [late], world.now)
    await miss(world, training_id)
    current = await store.rounds.current(training_id)
    assert current is not None
    extended = RoundExtended(0, 2, current.deadline, 0, 2)
    log = [event.payload for event in await read(store, training_id, member)]
    # Who begins to listen now begins with the round as it is.
    assert isinstance(log[0], RoundStarted)
    assert (log[0].round, log[0].attempt, log[0].deadline) == (0, 2, current.deadline)
    assert log[1:] == [extended]
    (joined,) = [event.payload for event in await read(store, training_id, late)]
    assert joined == log[0]
    heard = [event.payload for event in (await store.events.poll(training_id, late, 0, 100)).events]
    assert [type(payload) for payload in heard] == [TrainingStarted, RoundExtended, RoundStarted]
    seen = [type(event.payload) for event in await read(store, training_id, actor)]
    assert seen == [RoundStarted, TrainingStarted, RoundExtended, RoundStarted]


async def test_only_a_user_that_submitted_is_shown_so(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2, round_policy=policy())

    async def is_submitted(user: str) -> bool:
        (started,) = [
            event.payload
            for event in await read(store, training.training_id, user)
            if isinstance(event.payload, RoundStarted)
        ]
        return started.submitted

    assert [await is_submitted(user) for user in (actor, first, second)] == [False, False, False]
    await world.submit(training.training_id, 0, first)
    await miss(world, training.training_id)
    assert [await is_submitted(user) for user in (actor, first, second)] == [False, True, False]


async def test_min_updates_count_over_all_tries(store: Store, world: World) -> None:
    _, clients, training = await world.running(4, round_policy=policy(min_updates=3))
    for attempt, client in enumerate(clients[:2], 1):
        assert not (await world.submit(training.training_id, 0, client))[1]
        await miss(world, training.training_id, attempt=attempt)
    assert (await world.submit(training.training_id, 0, clients[2]))[1]


async def test_no_user_joins_a_chain(store: Store, world: World) -> None:
    chain = fed_dc(daisy_period=1, aggregation_period=3, seed=1)
    actor, clients, training = await world.running(2, round_policy=policy(), aggregation=chain)
    for client in clients:
        await world.submit(training.training_id, 0, client)
    task = await store.rounds.find_aggregation(training.training_id)
    assert task is not None
    assert await store.rounds.commit(training.training_id, 0, task.round.epoch, None, world.now)
    late = await world.user()
    await store.trainings.register(training.training_id, actor, [late], world.now)
    await miss(world, training.training_id, 1)
    current = await store.rounds.current(training.training_id)
    assert current is not None
    assert (current.number, current.attempt, current.expected) == (1, 2, 2)
    with pytest.raises(NotInCohort):
        await world.submit(training.training_id, 1, late)


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        (KINDS["EVALUATE"], {"metric_names": ("loss",)}),
        (KINDS["SWAG"], {"uncertainty": Swag(samples=1, every=1, rank=1)}),
    ],
)
async def test_rounds_of_other_kinds_are_repeated_alike(
    store: Store, world: World, kind: RoundKind, spec: dict[str, Any]
) -> None:
    actor, clients, training = await world.running(2, round_policy=policy(), target_num_updates=1, **spec)
    training_id = training.training_id
    for client in clients:
        await world.submit(training_id, 0, client)
    await world.commit(training_id)

    async def hand_in(client: str) -> bool:
        if kind is KINDS["EVALUATE"]:
            return await world.report(training_id, 1, client, 5, loss=0.5)
        return (await world.submit(training_id, 1, client))[1]

    assert not await hand_in(clients[0])
    await miss(world, training_id, 1)
    current = await store.rounds.current(training_id)
    assert current is not None
    assert (current.kind, current.attempt, current.arrived) == (kind, 2, 1)
    assert await hand_in(clients[1])
    task = await store.rounds.find_aggregation(training_id)
    assert task is not None
    assert len(task.updates) == (0 if kind is KINDS["EVALUATE"] else 2)
    result = blob("posterior") if kind is KINDS["SWAG"] else None
    assert await store.rounds.commit(training_id, 1, task.round.epoch, result, world.now)
    assert (await store.trainings.get(training_id, actor)).state is TrainingState.COMPLETED


async def lapse(coordination: Coordination, training_id: str) -> None:
    """Waits until a timer waits for the present deadline, and lets it pass."""
    current = await coordination.context.store.rounds.current(training_id)
    assert current is not None
    assert current.deadline is not None
    await coordination.clock.asleep(current.deadline)
    coordination.clock.advance(current.deadline - coordination.clock.now())


async def attempts(coordination: Coordination, training_id: str, count: int) -> None:
    """Waits for a try of the current round."""
    with coordination.context.hub.waiter() as waiter:
        waiter.follow([training_id])
        while (
            current := await coordination.context.store.rounds.current(training_id)
        ) is None or current.attempt < count:
            assert await waiter.wait(30), "no waiter is woken any more"


async def test_each_try_has_a_timer_of_its_own(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, _, training = await coordination.running(2, round_policy=policy(retries=2))
        for count in (2, 3):
            await lapse(coordination, training.training_id)
            await attempts(coordination, training.training_id, count)
        await lapse(coordination, training.training_id)
        after = await coordination.until(actor, training.training_id, lambda training: training.state.is_ended)
    assert after.failure is not None
    assert "3 times" in after.failure.message


async def test_the_next_deadline_counts_from_a_clock_that_was_set_back(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        _, _, training = await coordination.running(2, round_policy=policy())
        current = await store.rounds.current(training.training_id)
        assert current is not None
        assert current.deadline is not None
        await coordination.clock.asleep(current.deadline)
        coordination.clock.jump(-90 * MINUTE)
        coordination.clock.advance(MINUTE)
        await attempts(coordination, training.training_id, 2)
        repeated = await store.rounds.current(training.training_id)
        assert repeated is not None
        assert repeated.deadline == coordination.clock.now() + MINUTE


async def test_a_look_beside_a_timer_that_fires_leaves_one_timer(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        _, _, training = await coordination.running(1, round_policy=policy())
        # Behind the timer's back: the round is repeated, and the timer of its first try is armed still.
        await miss(coordination.world, training.training_id)
        await coordination.coordinator.rounds.reconcile()
        await lapse(coordination, training.training_id)
        await attempts(coordination, training.training_id, 3)
        current = await store.rounds.current(training.training_id)
        assert current is not None
        assert current.attempt == 3


async def test_a_deadline_that_passed_while_the_server_was_down_repeats_the_round_once(
    store: Store, tmp_path: Path
) -> None:
    async with coordinating(store, tmp_path / "one") as coordination:
        _, _, training = await coordination.running(1, round_policy=policy(retries=3))
    async with coordinating(store, tmp_path / "two") as coordination:
        # However often it would have been repeated meanwhile: no user could submit.
        coordination.clock.advance(10 * MINUTE)
        await coordination.coordinator.recover()
        current = await store.rounds.current(training.training_id)
        assert current is not None
        assert (current.attempt, current.deadline) == (2, coordination.clock.now() + MINUTE)
        await lapse(coordination, training.training_id)
        await attempts(coordination, training.training_id, 3)


@pytest.mark.parametrize("committed", [True, False])
async def test_a_repeat_whose_answer_is_lost_happens_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        _, _, training = await coordination.running(1, round_policy=policy())
        lose(monkeypatch, RoundVerbs, "judge", committed=committed)
        await lapse(coordination, training.training_id)
        await coordination.clock.asleep(RETRY_DELAY)
        coordination.clock.advance(RETRY_DELAY)
        await attempts(coordination, training.training_id, 2)
        current = await store.rounds.current(training.training_id)
        assert current is not None
        assert current.attempt == 2
        # And its new deadline is waited for.
        await lapse(coordination, training.training_id)
        await attempts(coordination, training.training_id, 3)
