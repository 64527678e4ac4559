"""Budgets of privacy, independent draws, and secrets of trees, on both databases."""

import math
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from aggregations import PRIVATE, TREE
from contracts.audits import check, recorded
from contracts.coordination import coordinating
from contracts.test_aggregation_state import used
from contracts.test_cohort import members
from contracts.test_failures import current, log
from contracts.world import SPEC, World, blob, new_id
from fedround_server.domain.aggregation import Aggregation, AggregationState
from fedround_server.domain.cohort import Cohort, draw_independently
from fedround_server.domain.event import TrainingFinished
from fedround_server.domain.policy import OnMissed, RoundPolicy
from fedround_server.domain.privacy import PRIVACY_BUDGET, PrivacyAccount
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import Evaluation, Goal, Selection, Training, TrainingState
from fedround_server.domain.user import Role
from fedround_server.store import Store
from fedround_server.store.queries.version import artifacts_of


async def start(
    world: World, clients: int, rounds_allowed: int | None, aggregation: Aggregation = PRIVATE, **spec: Any
) -> tuple[str, list[str], Training]:
    actor, users = await world.user(Role.ACTOR), await world.users(clients)
    wanted = replace(
        SPEC,
        client_ids=tuple(users),
        aggregation=aggregation,
        **{"evaluation": Evaluation.NEVER, "target_num_updates": 9, **spec},
    )
    made = await world.create(actor, wanted, rounds_allowed=rounds_allowed)
    return actor, users, await world.store.trainings.start(made.training_id, actor, None, world.now)


async def account(store: Store, training: Training) -> PrivacyAccount | None:
    return (await store.trainings.get(training.training_id, training.actor_id)).account


async def finish(world: World, training: Training, left: AggregationState | None = None) -> None:
    """Has the members of the open round submit, if there are any, and commits it."""
    task = await world.store.rounds.find_aggregation(training.training_id)
    if task is None:
        number = (await current(world.store, training.training_id)).number
        for user in await members(world.store, training.training_id, training.actor_id):
            await world.submit(training.training_id, number, user)
        task = await world.store.rounds.find_aggregation(training.training_id)
    assert task is not None
    made, state = blob(f"version {new_id()}"), left or AggregationState()
    assert await world.store.rounds.commit(
        training.training_id, task.round.number, task.round.epoch, made, world.now, state
    )


async def test_a_training_ends_before_its_budget_is_overspent(store: Store, world: World) -> None:
    actor, (user, *_), training = await start(world, 2, 3)
    for number in range(3):
        assert await account(store, training) == PrivacyAccount(number + 1, 3)
        await finish(world, training)
    found = await store.trainings.get(training.training_id, actor)
    assert (found.state, found.model_version, found.account) == (TrainingState.COMPLETED, 3, PrivacyAccount(3, 3))
    assert found.failure is not None
    assert found.failure.reason == PRIVACY_BUDGET
    assert "version 3 of 9" in found.failure.message
    last = (await log(store, training.training_id, user))[-1].payload
    assert last == TrainingFinished(found.model_id, 3, stopped_early=True, reason=PRIVACY_BUDGET)
    entries = await recorded(store, "training_completed")
    assert entries[-1]["reason"] == PRIVACY_BUDGET
    await check(store)


async def test_a_target_that_the_budget_just_allows_is_reached(store: Store, world: World) -> None:
    actor, _, training = await start(world, 2, 2, target_num_updates=2)
    for _ in range(2):
        await finish(world, training)
    found = await store.trainings.get(training.training_id, actor)
    assert (found.state, found.failure) == (TrainingState.COMPLETED, None)


async def test_a_version_is_evaluated_when_the_budget_is_spent(store: Store, world: World) -> None:
    actor, users, training = await start(
        world, 2, 1, metric_names=("loss",), evaluation=Evaluation.FINAL_ONLY, target_num_updates=5
    )
    await finish(world, training)
    evaluation = await current(store, training.training_id)
    assert evaluation.kind.name == "EVALUATE"
    assert await account(store, training) == PrivacyAccount(1, 1)
    for user in users:
        await world.report(training.training_id, evaluation.number, user, 1, loss=0.5)
    assert await world.commit(training.training_id)
    found = await store.trainings.get(training.training_id, actor)
    assert found.failure is not None
    assert found.failure.reason == PRIVACY_BUDGET


async def test_a_version_is_evaluated_if_the_last_round_of_the_budget_is_abandoned(store: Store, world: World) -> None:
    actor, users, training = await start(
        world, 1, 2, metric_names=("loss",), evaluation=Evaluation.FINAL_ONLY, target_num_updates=5
    )
    await finish(world, training)
    joined = await world.user()
    await store.trainings.register(training.training_id, actor, [joined], world.now)
    await store.trainings.remove_clients(training.training_id, actor, users, world.now)
    evaluation = await current(store, training.training_id)
    assert (evaluation.kind.name, evaluation.model_version) == ("EVALUATE", 1)
    await world.report(training.training_id, evaluation.number, joined, 1, loss=0.5)
    assert await world.commit(training.training_id)
    found = await store.trainings.get(training.training_id, actor)
    assert found.failure is not None
    assert (found.state, found.failure.reason) == (TrainingState.COMPLETED, PRIVACY_BUDGET)


async def test_a_training_without_patience_does_not_end_for_its_budget(store: Store, world: World) -> None:
    selection = Selection("loss", Goal.MINIMIZE, 1)
    actor, users, training = await start(
        world, 1, 2, metric_names=("loss",), evaluation=Evaluation.EVERY_ROUND, selection=selection
    )
    for number in (1, 3):
        await finish(world, training)
        await world.report(training.training_id, number, users[0], 1, loss=0.5)
        await world.commit(training.training_id)
    found = await store.trainings.get(training.training_id, actor)
    assert (found.state, found.failure) == (TrainingState.COMPLETED, None)


async def test_a_round_without_a_budget_is_counted(store: Store, world: World) -> None:
    _, _, training = await start(world, 2, None)
    await finish(world, training)
    found = await account(store, training)
    assert found == PrivacyAccount(2, None)
    assert found.rounds_left is None


async def test_an_abandoned_round_stays_charged(store: Store, world: World) -> None:
    actor, users, training = await start(world, 2, 2)
    for number in range(2):
        joined = await world.user()
        await store.trainings.register(training.training_id, actor, [joined], world.now)
        assert (await account(store, training), (await current(store, training.training_id)).number) == (
            PrivacyAccount(number + 1, 2),
            number,
        )
        # The whole cohort leaves: the round is abandoned, and another one is opened for those who joined.
        await store.trainings.remove_clients(training.training_id, actor, users, world.now)
        users = [joined]
    found = await store.trainings.get(training.training_id, actor)
    assert found.account == PrivacyAccount(2, 2)
    assert found.failure is not None
    assert (found.state, found.failure.reason) == (TrainingState.COMPLETED, PRIVACY_BUDGET)
    assert (await current(store, training.training_id)).state is RoundState.ABANDONED


async def test_a_round_that_is_repeated_asks_no_others_and_is_charged_once(store: Store, world: World) -> None:
    policy = RoundPolicy(deadline=timedelta(minutes=1), on_missed=OnMissed.RETRY, max_retries=3)
    actor, _, training = await start(world, 20, 5, cohort=Cohort(fraction=0.5, seed=2), round_policy=policy)
    # Of 20, none is drawn once in a million runs.
    before = await members(store, training.training_id, actor)
    await store.trainings.register(training.training_id, actor, [await world.user()], world.now)
    for _ in range(2):
        assert not await store.rounds.judge(training.training_id, 0, due=True, now=world.now)
    found = await current(store, training.training_id)
    assert (found.attempt, found.state) == (3, RoundState.OPEN)
    assert await members(store, training.training_id, actor) == before
    assert await account(store, training) == PrivacyAccount(1, 5)
    # Whoever checks the draws of the ledger finds that there was one.
    draws = [*await recorded(store, "round_opened"), *await recorded(store, "round_extended")]
    assert ["chosen" in one for one in draws] == [True, False, False]


async def test_a_round_without_a_draw_lets_nobody_join_either(store: Store, world: World) -> None:
    policy = RoundPolicy(deadline=timedelta(minutes=1), on_missed=OnMissed.RETRY, max_retries=3)
    actor, users, training = await start(world, 2, 5, round_policy=policy)
    await store.trainings.register(training.training_id, actor, [await world.user()], world.now)
    await store.rounds.judge(training.training_id, 0, due=True, now=world.now)
    assert await members(store, training.training_id, actor) == users


async def test_each_participant_is_drawn_independently(store: Store, world: World) -> None:
    cohort = Cohort(fraction=0.4, seed=77)
    actor, users, training = await start(world, 5, None, cohort=cohort, target_num_updates=30)
    for number in range(12):
        found = await current(store, training.training_id)
        chosen = draw_independently(77, training.training_id, number, 1, users, 0.4)
        assert (found.number, found.needed, found.chosen, found.population) == (number, len(chosen), len(chosen), 5)
        assert await members(store, training.training_id, actor) == chosen
        assert found.state is (RoundState.OPEN if chosen else RoundState.AGGREGATING)
        await finish(world, training)
    await check(store)


async def test_a_round_of_nobody_makes_a_version(store: Store, world: World) -> None:
    actor, _, training = await start(world, 2, None, cohort=Cohort(fraction=1e-9, seed=1), target_num_updates=3)
    for number in range(3):
        task = await store.rounds.find_aggregation(training.training_id)
        assert task is not None
        assert (task.round.number, task.round.state, task.updates) == (number, RoundState.AGGREGATING, ())
        await finish(world, training)
    found = await store.trainings.get(training.training_id, actor)
    assert (found.state, found.model_version) == (TrainingState.COMPLETED, 3)
    assert found.account == PrivacyAccount(3, None)
    await check(store)


async def test_rounds_of_nobody_are_aggregated_one_after_the_other(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as run:
        actor, _, training = await run.running(
            2, cohort=Cohort(fraction=1e-9, seed=1), target_num_updates=4, aggregation=PRIVATE
        )
        done = await run.until(actor, training.training_id, lambda found: found.state.is_ended)
        assert (done.state, done.model_version) == (TrainingState.COMPLETED, 4)
        assert [(job.updates, job.population) for job in run.engine.jobs] == [((), 2)] * 4
        assert [job.expected for job in run.engine.jobs] == [2e-9] * 4


def test_a_draw_has_the_probability_that_it_is_asked_for() -> None:
    users, chosen = [new_id() for _ in range(200)], 0
    pairs = 0
    for number in range(100):
        drawn = draw_independently(9, "training", number, 1, users, 0.3)
        chosen += len(drawn)
        pairs += users[0] in drawn and users[1] in drawn
    assert abs(chosen - 6000) < 6.1 * math.sqrt(20000 * 0.3 * 0.7)
    assert abs(pairs - 9) < 6.1 * math.sqrt(100 * 0.09 * 0.91)
    assert draw_independently(9, "training", 0, 1, users, 1.0) == sorted(users)
    assert draw_independently(9, "training", 0, 2, users, 0.3) != draw_independently(9, "training", 0, 1, users, 0.3)


def left(number: int) -> AggregationState:
    return AggregationState({"tree/key": blob("the secret")}, {"tree/key": number})


async def test_the_secret_of_a_tree_goes_on_and_is_gone_after_the_training(store: Store, world: World) -> None:
    actor, _, training = await start(world, 1, 2, TREE)
    before = await used(store, actor)
    await finish(world, training, left(1))
    assert await used(store, actor) - before >= blob("the secret").size_bytes
    await world.submit(training.training_id, 1, training.participant_ids[0])
    task = await store.rounds.find_aggregation(training.training_id)
    assert task is not None
    assert task.state == left(1)
    await finish(world, training, left(2))
    found = await store.trainings.get(training.training_id, actor)
    assert found.state is TrainingState.COMPLETED
    assert await secrets(store, found.model_id) == []
    # A training that goes on from its model begins a tree of its own.
    again = replace(SPEC, client_ids=training.participant_ids, aggregation=TREE, model_id=found.model_id)
    made = await world.create(actor, again)
    assert await secrets(store, made.model_id) == []


@pytest.mark.parametrize("how", ["failed", "removed", "stopped"])
async def test_a_secret_is_gone_however_a_training_ends(store: Store, world: World, how: str) -> None:
    actor, _, training = await start(world, 1, None, TREE)
    await finish(world, training, left(1))
    assert await secrets(store, training.model_id) == ["tree/key"]
    if how == "failed":
        await world.submit(training.training_id, 1, training.participant_ids[0])
        assert await store.rounds.fail(training.training_id, 1, 1, "AGGREGATION_FAILED", "x", world.now)
    elif how == "removed":
        await store.trainings.remove(training.training_id, actor, force=True, now=world.now)
    else:
        await finish(world, training, left(2))
        for _ in range(7):
            await finish(world, training, left(3))
    assert await secrets(store, training.model_id) == []


async def test_a_copy_of_a_version_in_training_has_no_secret(store: Store, world: World) -> None:
    actor, _, training = await start(world, 1, None, TREE)
    await finish(world, training, left(1))
    again = replace(SPEC, client_ids=training.participant_ids, aggregation=TREE, model_id=training.model_id)
    made = await world.create(actor, again)
    assert made.model_id != training.model_id
    assert await secrets(store, made.model_id) == []
    assert await secrets(store, training.model_id) == ["tree/key"]


async def secrets(store: Store, model_id: str) -> list[str]:
    found = await store._database.run(lambda: artifacts_of(model_id, range(20)))
    return [one.kind for one in found]
