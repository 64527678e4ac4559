"""What is submitted again after it was superseded, or in another form; on both databases."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from contracts.world import World, blob, new_id, update
from fedround_server.domain.errors import (
    FedroundError,
    MetricsExist,
    NotInCohort,
    RoundNotOpen,
    TrainingNotFound,
    UpdateExists,
    UpdateSuperseded,
)
from fedround_server.domain.policy import OnMissed, RoundPolicy
from fedround_server.domain.report import NewReport
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import Evaluation
from fedround_server.store import Store

MINUTE = timedelta(minutes=1)


async def by_the_actor(world: World, training_id: str, actor: str, user: str) -> None:
    await world.store.trainings.remove_clients(training_id, actor, [user], world.now)


async def by_itself(world: World, training_id: str, actor: str, user: str) -> None:
    await world.store.trainings.remove_clients(training_id, user, [user], world.now)


async def with_its_account(world: World, training_id: str, actor: str, user: str) -> None:
    await world.store.users.remove(user, world.now)


Leave = Callable[[World, str, str, str], Awaitable[None]]
leave_ways = pytest.mark.parametrize("leave", [by_the_actor, by_itself, with_its_account])


async def reject(world: World, training_id: str, number: int, user: str, content: str = "") -> FedroundError:
    """The error of an update, which is the same before and after its file was received."""
    with pytest.raises(FedroundError) as early:
        await world.store.submissions.admit(update(training_id, number, user, content))
    with pytest.raises(FedroundError) as late:
        await world.submit(training_id, number, user, content)
    assert (type(early.value), early.value.message) == (type(late.value), late.value.message)
    return late.value


@leave_ways
async def test_an_update_of_a_removed_participant_is_not_acknowledged_again(
    store: Store, world: World, leave: Leave
) -> None:
    actor, (first, second, _), training = await world.running(3)
    accepted, _ = await world.submit(training.training_id, 0, first)
    await leave(world, training.training_id, actor, first)
    error = await reject(world, training.training_id, 0, first)
    assert isinstance(error, UpdateSuperseded)
    assert "was superseded, and will not count: you were removed from the round" in error.message
    assert error.metadata == {"update_id": accepted.update_id}
    assert isinstance(await reject(world, training.training_id, 0, first, "another"), NotInCohort)
    # Nobody else is concerned.
    await world.submit(training.training_id, 0, second)
    await store.submissions.admit(update(training.training_id, 0, second))


async def test_it_stays_superseded_when_the_round_is_over(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2)
    await world.submit(training.training_id, 0, first)
    await by_the_actor(world, training.training_id, actor, first)
    await world.submit(training.training_id, 0, second)
    for over in (False, True):
        if over:
            await world.commit(training.training_id)
        assert isinstance(await reject(world, training.training_id, 0, first), UpdateSuperseded)
        assert isinstance(await reject(world, training.training_id, 0, first, "another"), RoundNotOpen)


@pytest.mark.parametrize("retries", [0, 1])
async def test_who_comes_back_starts_with_the_next_round(store: Store, world: World, retries: int) -> None:
    policy = RoundPolicy(0, MINUTE, on_missed=OnMissed.RETRY if retries else OnMissed.FAIL, max_retries=retries)
    actor, (first, second), training = await world.running(2, round_policy=policy)
    training_id = training.training_id
    await world.submit(training_id, 0, first)
    await by_the_actor(world, training_id, actor, first)
    await store.trainings.register(training_id, actor, [first], world.now)
    for attempt in range(1, 2 + retries):
        assert isinstance(await reject(world, training_id, 0, first), UpdateSuperseded)
        assert isinstance(await reject(world, training_id, 0, first, "another"), NotInCohort)
        if attempt <= retries:
            assert not await store.rounds.judge(training_id, 0, due=True, now=world.now, attempt=attempt)
    await world.submit(training_id, 0, second)
    await world.commit(training_id)
    # The superseded file is as good as any other there.
    again, _ = await world.submit(training_id, 1, first, f"0 {first}")
    assert again.blob == blob(f"0 {first}")
    assert await world.submit(training_id, 1, first, f"0 {first}") == (again, False)


@pytest.mark.parametrize("closed", [False, True])
async def test_updates_of_an_abandoned_round_are_superseded(store: Store, world: World, closed: bool) -> None:
    policy = RoundPolicy(1 if closed else 0, MINUTE)
    _, (first, second), training = await world.running(2, round_policy=policy)
    training_id = training.training_id
    await world.submit(training_id, 0, first)
    if closed:
        task = await store.rounds.find_aggregation(training_id)
        assert task is not None
        assert await store.rounds.fail(training_id, 0, task.round.epoch, "AGGREGATION_FAILED", "no", world.now)
    else:
        await store.rounds.judge(training_id, 0, due=True, now=world.now)
    current = await store.rounds.current(training_id)
    assert current is not None
    assert current.state is RoundState.ABANDONED
    error = await reject(world, training_id, 0, first)
    assert isinstance(error, UpdateSuperseded)
    assert "the round was abandoned" in error.message
    for user, content in ((first, "another"), (second, "")):
        assert isinstance(await reject(world, training_id, 0, user, content), RoundNotOpen)


async def test_updates_of_a_round_without_members_are_superseded(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2)
    training_id = training.training_id
    late = await world.user()
    await world.submit(training_id, 0, first)
    await store.trainings.register(training_id, actor, [late], world.now)
    await store.trainings.remove_clients(training_id, actor, [first, second], world.now)
    assert isinstance(await reject(world, training_id, 0, first), UpdateSuperseded)
    for user, content in ((first, "another"), (second, "")):
        assert isinstance(await reject(world, training_id, 0, user, content), RoundNotOpen)
    assert isinstance(await reject(world, training_id, 1, first), NotInCohort)


async def test_updates_of_a_removed_training_are_gone(store: Store, world: World) -> None:
    actor, (first, _), training = await world.running(2)
    await world.submit(training.training_id, 0, first)
    await store.trainings.remove(training.training_id, actor, force=True, now=world.now)
    assert isinstance(await reject(world, training.training_id, 0, first), TrainingNotFound)


async def test_who_is_removed_while_its_update_is_aggregated_keeps_its_receipt(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2)
    accepted, _ = await world.submit(training.training_id, 0, first)
    await world.submit(training.training_id, 0, second)
    await by_the_actor(world, training.training_id, actor, first)
    for over in (False, True):
        if over:
            await world.commit(training.training_id)
        # It counts.
        assert await world.submit(training.training_id, 0, first) == (accepted, False)


@leave_ways
async def test_reports_are_treated_alike(store: Store, world: World, leave: Leave) -> None:
    actor, clients, training = await world.running(
        3, metric_names=("loss",), target_num_updates=1, evaluation=Evaluation.EVERY_ROUND
    )
    training_id = training.training_id
    for client in clients:
        await world.submit(training_id, 0, client)
    await world.commit(training_id)
    first, second, _ = clients
    for client in (first, second):
        assert not await world.report(training_id, 1, client, 5, loss=0.5)
        assert not await world.report(training_id, 1, client, 5, loss=0.5)
        for num_examples, loss, changed in ((6, 0.5, "num_examples"), (5, 0.25, "metrics")):
            with pytest.raises(MetricsExist, match=changed):
                await world.report(training_id, 1, client, num_examples, loss=loss)
    await leave(world, training_id, actor, first)
    with pytest.raises(UpdateSuperseded, match="your report for this round was superseded"):
        await world.report(training_id, 1, first, 5, loss=0.5)
    with pytest.raises(NotInCohort):
        await world.report(training_id, 1, first, 5, loss=0.25)
    assert not await world.report(training_id, 1, second, 5, loss=0.5)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"num_examples": 11}, "num_examples"),
        ({"metrics": {"loss": 0.25}}, "metrics"),
        ({"metrics": {}}, "metrics"),
        ({"metrics": {"loss": 0.5, "accuracy": 1.0}}, "metrics"),
        ({"blob": blob("another")}, "sha256"),
        ({"blob": blob("another"), "num_examples": 9}, "sha256, num_examples"),
    ],
)
async def test_an_update_is_the_same_only_as_a_whole(
    store: Store, world: World, changed: dict[str, Any], named: str
) -> None:
    _, (first, second), training = await world.running(2)
    accepted, _ = await world.submit(training.training_id, 0, first)
    assert accepted.num_examples == 10
    new = replace(update(training.training_id, 0, first), **changed)
    for over in (False, True):
        if over:
            await world.submit(training.training_id, 0, second)
            await world.commit(training.training_id)
        for call in (store.submissions.admit(new), store.submissions.submit_update(new_id(), new, world.now)):
            with pytest.raises(UpdateExists, match=rf"\(different: {named}\): it stands") as error:
                await call
            assert error.value.metadata == {"update_id": accepted.update_id}
        assert await world.submit(training.training_id, 0, first) == (accepted, False)


async def test_a_report_beside_an_update_is_another_one(store: Store, world: World) -> None:
    _, (first, _), training = await world.running(2)
    await world.submit(training.training_id, 0, first)
    new = NewReport(training.training_id, 0, first, 10, {"loss": 0.5})
    with pytest.raises(UpdateExists):
        await store.submissions.submit_report(new_id(), new, world.now)
