"""The commit protocol: updates in, closes, commits; on both databases."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from contracts.world import World, blob, new_id, update
from fedround_server.domain.errors import (
    FieldInvalid,
    MetricsExist,
    NotActor,
    NotInCohort,
    NumExamples,
    RoundNotFound,
    RoundNotOpen,
    TrainingNotFound,
    UpdateExists,
)
from fedround_server.domain.policy import RoundPolicy
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import TrainingState
from fedround_server.domain.user import Role
from fedround_server.store import Store
from sizes import size

RACES = size("RACES", 8)


async def test_a_training_from_start_to_end(store: Store, world: World) -> None:
    actor, clients, training = await world.running(3, target_num_updates=2)
    for number in range(2):
        closes = []
        # They arrive against the canonical order.
        for client in reversed(clients):
            closes.append((await world.submit(training.training_id, number, client))[1])
        assert closes == [False, False, True]
        task = await store.rounds.find_aggregation(training.training_id)
        assert task is not None
        assert [update.user_id for update in task.updates] == clients
        assert (task.round.number, task.round.kind, task.round.epoch) == (number, KINDS["TRAIN"], 1)
        assert task.model == (await store.models.get_version(training.model_id, number, actor)).blob
        assert await world.commit(training.training_id, f"trained {number}")
        after = await store.trainings.get(training.training_id, actor)
        assert after.model_version == number + 1
    assert (after.state, after.round, after.updates_arrived, after.updates_expected) == (
        TrainingState.COMPLETED,
        1,
        3,
        3,
    )
    assert await store.rounds.unfinished() == []
    assert (await store.models.get_version(training.model_id, None, actor)).blob == blob("trained 1")
    closed = await store.rounds.explain(training.training_id, 0, actor)
    assert (closed.round.state, closed.round.arrived, len(closed.members)) == (RoundState.DONE, 3, 3)


async def test_the_same_update_again_gets_the_same_receipt(store: Store, world: World) -> None:
    _, (first, second), training = await world.running(2)
    accepted, _ = await world.submit(training.training_id, 0, first)
    assert await world.submit(training.training_id, 0, first) == (accepted, False)
    assert await store.submissions.admit(update(training.training_id, 0, first)) == accepted
    with pytest.raises(UpdateExists) as raised:
        await world.submit(training.training_id, 0, first, "another")
    assert raised.value.metadata["update_id"] == accepted.update_id
    await world.submit(training.training_id, 0, second)
    await world.commit(training.training_id)
    # The round is over, the receipt stays.
    assert await world.submit(training.training_id, 0, first) == (accepted, False)
    with pytest.raises(UpdateExists):
        await world.submit(training.training_id, 0, first, "another")


async def test_an_update_counts_once_however_often_it_is_sent_at_once(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2)
    answers = await asyncio.gather(*(world.submit(training.training_id, 0, first) for _ in range(20)))
    assert len({update.update_id for update, _ in answers}) == 1
    assert not any(closed for _, closed in answers)
    assert (await store.trainings.get(training.training_id, actor)).updates_arrived == 1
    others = await asyncio.gather(
        *(world.submit(training.training_id, 0, second, str(number)) for number in range(20)), return_exceptions=True
    )
    assert sum(isinstance(answer, tuple) for answer in others) == 1
    assert sum(isinstance(answer, UpdateExists) for answer in others) == 19


@pytest.mark.attack
async def test_of_two_last_updates_one_closes_the_round(store: Store, world: World) -> None:
    for _ in range(RACES):
        _, clients, training = await world.running(3)
        answers = await asyncio.gather(*(world.submit(training.training_id, 0, client) for client in clients))
        assert sum(closed for _, closed in answers) == 1
        task = await store.rounds.find_aggregation(training.training_id)
        assert task is not None
        assert [update.user_id for update in task.updates] == clients


@pytest.mark.attack
async def test_a_removal_beside_the_last_update_closes_the_round_once(store: Store, world: World) -> None:
    for _ in range(RACES):
        actor, (first, second, third), training = await world.running(3)
        await world.submit(training.training_id, 0, first)
        (_, by_update), (_, by_removal) = await asyncio.gather(
            world.submit(training.training_id, 0, second),
            store.trainings.remove_clients(training.training_id, actor, [third], world.now),
        )
        assert by_update != by_removal
        task = await store.rounds.find_aggregation(training.training_id)
        assert task is not None
        assert [update.user_id for update in task.updates] == [first, second]


@pytest.mark.attack
async def test_of_two_commits_one_counts(store: Store, world: World) -> None:
    for _ in range(RACES):
        actor, (client,), training = await world.running(1)
        await world.submit(training.training_id, 0, client)
        answers = await asyncio.gather(
            *(store.rounds.commit(training.training_id, 0, 1, blob("new"), world.now) for _ in range(4))
        )
        assert sorted(answers) == [False, False, False, True]
        after = await store.trainings.get(training.training_id, actor)
        assert (after.round, after.model_version) == (1, 1)


async def test_a_commit_wants_the_epoch_of_the_close(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1)
    for epoch in (0, 1):
        assert not await store.rounds.commit(training.training_id, 0, epoch, blob("early"), world.now)
    await world.submit(training.training_id, 0, client)
    for epoch in (0, 2):
        assert not await store.rounds.commit(training.training_id, 0, epoch, blob("stale"), world.now)
        assert not await store.rounds.fail(training.training_id, 0, epoch, "NOT_THIS", "", world.now)
    assert (await store.trainings.get(training.training_id, actor)).model_version == 0
    assert await world.commit(training.training_id)


async def test_a_failed_aggregation_ends_the_training_and_keeps_what_was_there(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1)
    await world.submit(training.training_id, 0, client)
    assert await store.rounds.fail(training.training_id, 0, 1, "AGGREGATION_FAILED", "out of range", world.now)
    assert not await store.rounds.fail(training.training_id, 0, 1, "AGGREGATION_FAILED", "again", world.now)
    after = await store.trainings.get(training.training_id, actor)
    assert after.state is TrainingState.ERROR
    assert after.failure is not None
    assert (after.failure.reason, after.failure.message) == ("AGGREGATION_FAILED", "out of range")
    assert (await store.rounds.current(training.training_id)).state is RoundState.ABANDONED  # type: ignore[union-attr]
    kept = {blob(f"0 {client}").sha256, blob("zeros").sha256}
    assert await store.models.digests_in_use(kept) == kept


@pytest.mark.parametrize("num_examples", [-1, 1001, 2**40])
async def test_example_counts_are_bounded(store: Store, world: World, num_examples: int) -> None:
    _, (client,), training = await world.running(1)
    with pytest.raises(NumExamples, match=r"0\.\.1000"):
        await world.submit(training.training_id, 0, client, num_examples=num_examples)
    with pytest.raises(NumExamples):
        await store.submissions.admit(update(training.training_id, 0, client, num_examples=num_examples))
    assert (await world.submit(training.training_id, 0, client, num_examples=1000))[1]


async def test_only_the_open_round_takes_updates(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2, round_policy=RoundPolicy(min_updates=1))
    waiting = await world.training(actor, [first])
    cases: list[tuple[str, int, str]] = [(waiting.training_id, 0, "not started")]
    cases.append((training.training_id, 1, "the current round is 0"))
    await world.submit(training.training_id, 0, first)
    cases.append((training.training_id, 0, "AGGREGATING"))
    for training_id, number, why in cases:
        with pytest.raises(RoundNotOpen, match=why):
            await world.submit(training_id, number, second if training_id == training.training_id else first)
    await world.commit(training.training_id)
    with pytest.raises(RoundNotOpen, match="DONE"):
        await world.submit(training.training_id, 0, second)
    with pytest.raises(RoundNotOpen, match="kind TRAIN: use SubmitUpdate"):
        await world.report(training.training_id, 1, first, 1, loss=0.5)


async def test_who_was_registered_during_a_round_waits_for_the_next(store: Store, world: World) -> None:
    actor, (first,), training = await world.running(1)
    late = await world.user()
    await store.trainings.register(training.training_id, actor, [late], world.now)
    with pytest.raises(NotInCohort):
        await world.submit(training.training_id, 0, late)
    assert (await world.submit(training.training_id, 0, first))[1]
    await world.commit(training.training_id)
    assert (await store.trainings.get(training.training_id, actor)).updates_expected == 2
    await world.submit(training.training_id, 1, late)


async def test_who_comes_back_into_the_round_does_not_count_in_it(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2)
    await store.trainings.remove_clients(training.training_id, actor, [first], world.now)
    with pytest.raises(NotInCohort):
        await world.submit(training.training_id, 0, first)
    await store.trainings.register(training.training_id, actor, [first], world.now)
    with pytest.raises(NotInCohort):
        await world.submit(training.training_id, 0, first)
    assert (await world.submit(training.training_id, 0, second))[1]
    await world.commit(training.training_id)
    await world.submit(training.training_id, 1, first)


async def test_a_removed_participants_update_does_not_count(store: Store, world: World) -> None:
    actor, (first, second, third), training = await world.running(3)
    for client in (first, second):
        await world.submit(training.training_id, 0, client)
    _, closed = await store.trainings.remove_clients(training.training_id, actor, [second], world.now)
    assert not closed
    after = await store.trainings.get(training.training_id, actor)
    assert (after.updates_arrived, after.updates_expected) == (1, 2)
    assert (await world.submit(training.training_id, 0, third))[1]
    task = await store.rounds.find_aggregation(training.training_id)
    assert task is not None
    assert [update.user_id for update in task.updates] == [first, third]


async def test_a_removal_during_the_aggregation_does_not_change_it(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2)
    for client in (first, second):
        await world.submit(training.training_id, 0, client)
    before = await store.rounds.find_aggregation(training.training_id)
    _, closed = await store.trainings.remove_clients(training.training_id, actor, [second], world.now)
    assert not closed
    assert await store.rounds.find_aggregation(training.training_id) == before
    await world.commit(training.training_id)
    assert (await store.trainings.get(training.training_id, actor)).updates_expected == 1


async def test_min_updates_close_the_round(store: Store, world: World) -> None:
    actor, clients, training = await world.running(4, round_policy=RoundPolicy(min_updates=2))
    assert training.updates_expected == 2
    assert [(await world.submit(training.training_id, 0, client))[1] for client in clients[:2]] == [False, True]
    await world.commit(training.training_id)
    # Fewer members than min_updates: all that are left.
    _, closed = await store.trainings.remove_clients(training.training_id, actor, clients[:3], world.now)
    assert not closed
    assert (await store.trainings.get(training.training_id, actor)).updates_expected == 1
    assert (await world.submit(training.training_id, 1, clients[3]))[1]


@pytest.mark.parametrize("number", [0, None])
async def test_a_deadline_that_is_missed_ends_the_training(store: Store, world: World, number: int | None) -> None:
    policy = RoundPolicy(deadline=timedelta(seconds=30))
    actor, (first, second), training = await world.running(2, round_policy=policy)
    current = await store.rounds.current(training.training_id)
    assert current is not None
    assert current.deadline == current.open_time + timedelta(seconds=30)
    await world.submit(training.training_id, 0, first)
    assert not await store.rounds.judge(training.training_id, number, due=False, now=world.now)
    assert not await store.rounds.judge(training.training_id, 7, due=True, now=world.now)
    assert (await store.trainings.get(training.training_id, actor)).state is TrainingState.ONGOING
    assert not await store.rounds.judge(training.training_id, number, due=True, now=world.now)
    after = await store.trainings.get(training.training_id, actor)
    assert after.state is TrainingState.ERROR
    assert after.failure is not None
    name = (await store.users.get(second)).name
    assert after.failure.actor_message == f"the round reached its deadline with 1 of 2 updates; missing: {name}"
    assert name not in after.failure.message


async def test_a_deadline_after_the_close_does_nothing(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1, round_policy=RoundPolicy(deadline=timedelta(seconds=1)))
    await world.submit(training.training_id, 0, client)
    assert not await store.rounds.judge(training.training_id, 0, due=True, now=world.now)
    await world.commit(training.training_id)
    assert not await store.rounds.judge(training.training_id, 0, due=True, now=world.now)
    assert (await store.trainings.get(training.training_id, actor)).state is TrainingState.ONGOING


async def test_the_actor_sees_who_is_missing(store: Store, world: World) -> None:
    actor, clients, training = await world.running(3)
    accepted, _ = await world.submit(training.training_id, 0, clients[1])
    view = await store.rounds.explain(training.training_id, None, actor)
    found = view.round
    assert (found.number, found.state, found.arrived, found.expected) == (0, RoundState.OPEN, 1, 3)
    assert {member.user_id: member.arrive_time for member in view.members} == {
        clients[0]: None,
        clients[1]: accepted.accept_time,
        clients[2]: None,
    }
    with pytest.raises(NotActor):
        await store.rounds.explain(training.training_id, None, clients[0])
    with pytest.raises(RoundNotFound):
        await store.rounds.explain(training.training_id, 1, actor)


async def test_rounds_that_are_not_done_are_found_at_the_start(store: Store, world: World) -> None:
    _, (client,), aggregating = await world.running(1)
    await world.submit(aggregating.training_id, 0, client)
    _, _, waiting = await world.running(2)
    actor, _, removed = await world.running(1)
    await store.trainings.remove(removed.training_id, actor, force=True, now=world.now)
    await world.training(actor, [])
    found = await store.rounds.unfinished()
    assert [(left.training_id, left.state) for left in found] == [
        (aggregating.training_id, RoundState.AGGREGATING),
        (waiting.training_id, RoundState.OPEN),
    ]


async def test_evaluation_rounds_alternate_with_training_rounds(store: Store, world: World) -> None:
    actor, clients, training = await world.running(2, metric_names=("accuracy",), target_num_updates=1)
    for client in clients:
        await world.submit(training.training_id, 0, client)
    await world.commit(training.training_id)
    for call, expected in (
        (world.submit(training.training_id, 1, clients[0]), RoundNotOpen),
        (world.report(training.training_id, 1, clients[0], 10, loss=1.0), FieldInvalid),
    ):
        with pytest.raises(expected):
            await call
    assert not await world.report(training.training_id, 1, clients[0], 10, accuracy=0.5)
    assert not await world.report(training.training_id, 1, clients[0], 10, accuracy=0.5)
    with pytest.raises(MetricsExist):
        await world.report(training.training_id, 1, clients[0], 10, accuracy=0.6)
    assert await world.report(training.training_id, 1, clients[1], 30, accuracy=1.0)
    assert await world.commit(training.training_id)
    after = await store.trainings.get(training.training_id, actor)
    assert (after.state, after.round, after.model_version) == (TrainingState.COMPLETED, 1, 1)
    reports = await store.models.metrics(training.model_id, actor, (-1, ""), 10)
    evaluated = [(report.reporter_id, report.num_examples, report.metrics) for report in reports if report.round == 1]
    assert evaluated == [
        (None, 40, {"accuracy": 0.875}),
        (clients[0], 10, {"accuracy": 0.5}),
        (clients[1], 30, {"accuracy": 1.0}),
    ]
    assert {report.model_version for report in reports if report.round == 1} == {1}


async def test_an_unrelated_user_learns_nothing_of_a_round(store: Store, world: World) -> None:
    _, _, training = await world.running(1)
    unrelated = await world.user(Role.ACTOR)
    calls: list[Any] = [
        world.submit(training.training_id, 0, unrelated),
        world.report(training.training_id, 0, unrelated, 1),
        store.submissions.admit(update(training.training_id, 0, unrelated)),
        store.rounds.explain(training.training_id, 0, unrelated),
        world.submit(new_id(), 0, unrelated),
    ]
    for call in calls:
        with pytest.raises(TrainingNotFound):
            await call
