"""Cohorts that are drawn: who is asked, who is not, and who is released; on both databases."""

import asyncio
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from aggregations import fed_dc
from calls import until
from contracts.audits import chained, check, recorded
from contracts.test_failures import current, ending, fail, log
from contracts.world import World
from fedround_server.domain.cohort import Cohort, draw
from fedround_server.domain.errors import CohortImpossible, NotInCohort, RoundNotOpen
from fedround_server.domain.event import RoundClosed, RoundStarted, WorkNotNeeded
from fedround_server.domain.policy import OnMissed, RoundPolicy
from fedround_server.domain.rounds.round import Round, RoundState, RoundView
from fedround_server.domain.training import Goal, Selection, TrainingState
from fedround_server.domain.user import Role
from fedround_server.store import Store
from fedround_server.store.transitions import open_round as opening
from fedround_server.store.verbs import round as verbs

MINUTE = timedelta(minutes=1)


async def members(store: Store, training_id: str, actor: str, number: int | None = None) -> list[str]:
    view = await store.rounds.explain(training_id, number, actor)
    return sorted(one.user_id for one in view.members)


async def kinds_of(store: Store, training_id: str, user: str) -> list[str]:
    return [type(event.payload).__name__ for event in await log(store, training_id, user)]


async def left_out(store: Store, training_id: str, actor: str) -> dict[str, int]:
    view = await store.rounds.explain(training_id, None, actor)
    return {one.user_id: one.rounds_left_out for one in view.members if one.rounds_left_out}


async def finish(world: World, training_id: str, actor: str) -> None:
    """Has all members of the open round submit, and commits it."""
    number = (await current(world.store, training_id)).number
    for user in await members(world.store, training_id, actor):
        await world.submit(training_id, number, user)
    await world.commit(training_id)


async def test_each_round_asks_those_that_its_seed_draws(store: Store, world: World) -> None:
    cohort = Cohort(fraction=0.25, seed=2**64 - 1)
    actor, users, training = await world.running(10, cohort=cohort, target_num_updates=4)
    training_id = training.training_id
    drawn = []
    for number in range(4):
        chosen = await members(store, training_id, actor)
        assert chosen == draw(2**64 - 1, training_id, number, 1, users, 3)
        found = await current(store, training_id)
        assert (found.eligible, found.chosen, found.needed, found.expected) == (10, 3, 3, 3)
        drawn.append(chosen)
        await finish(world, training_id, actor)
    assert len({tuple(chosen) for chosen in drawn}) > 1
    opened = await recorded(store, "round_opened")
    assert [(one["seed"], one["eligible"], one["needed"], one["chosen"]) for one in opened] == [
        (str(2**64 - 1), 10, 3, chosen) for chosen in drawn
    ]
    await check(store)


async def test_who_is_not_asked_gets_nothing_of_the_round(store: Store, world: World) -> None:
    actor, users, training = await world.running(3, cohort=Cohort(size=1), target_num_updates=1)
    training_id = training.training_id
    (chosen,) = await members(store, training_id, actor)
    (other, _) = (user for user in users if user != chosen)
    with pytest.raises(NotInCohort):
        await world.submit(training_id, 0, other)
    await world.submit(training_id, 0, chosen)
    await world.commit(training_id)
    assert await kinds_of(store, training_id, other) == ["TrainingStarted", "TrainingFinished"]
    assert await kinds_of(store, training_id, chosen) == [
        "TrainingStarted",
        "RoundStarted",
        "RoundClosed",
        "TrainingFinished",
    ]


async def test_over_selection_closes_with_what_is_needed_and_releases_the_others(store: Store, world: World) -> None:
    cohort = Cohort(size=2, over_selection=1.5)
    actor, users, training = await world.running(5, cohort=cohort)
    training_id = training.training_id
    first, second, third = await members(store, training_id, actor)
    found = await current(store, training_id)
    assert (found.expected, found.needed, found.chosen) == (2, 2, 3)
    await world.submit(training_id, 0, first)
    assert (await world.submit(training_id, 0, third))[1]
    released = [one.payload for one in await log(store, training_id, second) if isinstance(one.payload, WorkNotNeeded)]
    assert released == [WorkNotNeeded(0, 2, 3)]
    for user in {*users, actor} - {second, actor}:
        assert "WorkNotNeeded" not in await kinds_of(store, training_id, user)
    assert "WorkNotNeeded" in await kinds_of(store, training_id, actor)
    with pytest.raises(RoundNotOpen, match="closed with 2 of 3 updates, which were enough") as late:
        await world.submit(training_id, 0, second)
    assert late.value.metadata == {"training_id": training_id, "num_updates": "2", "num_participants": "3"}
    await world.commit(training_id)
    assert (await store.trainings.get(training_id, actor)).model_version == 1
    view = await store.rounds.explain(training_id, 0, actor)
    assert {one.user_id: one.rounds_left_out for one in view.members} == {first: 0, second: 1, third: 0}
    await check(store)


async def test_nobody_is_released_if_all_are_in(store: Store, world: World) -> None:
    actor, _, training = await world.running(3, cohort=Cohort(size=3, over_selection=2))
    await finish(world, training.training_id, actor)
    assert "WorkNotNeeded" not in await kinds_of(store, training.training_id, actor)


async def test_failures_do_not_reduce_what_is_needed_before_fewer_are_left(store: Store, world: World) -> None:
    actor, _, training = await world.running(4, cohort=Cohort(size=2, over_selection=2))
    training_id = training.training_id
    first, second, third, fourth = await members(store, training_id, actor)
    await fail(world, training_id, first)
    await fail(world, training_id, second)
    assert (await current(store, training_id)).expected == 2
    await fail(world, training_id, third)
    assert (await current(store, training_id)).expected == 1
    assert (await world.submit(training_id, 0, fourth))[1]
    await world.commit(training_id)
    # Those that failed had no work that could be left out, and the next round knows them.
    view = await store.rounds.explain(training_id, 0, actor)
    assert not any(one.rounds_left_out for one in view.members)
    awaited = {one.user_id for one in await store.rounds.awaited(training_id, 1)}
    assert awaited == {first, second, third}


async def until_asked(world: World, training_id: str, actor: str, user: str, number: int) -> int:
    """Has others submit in rounds that do not ask a user; returns the first round that does."""
    while user not in (asked := await members(world.store, training_id, actor)):
        assert await world.store.rounds.awaited(training_id, number) == []
        await world.submit(training_id, number, asked[0])
        await world.commit(training_id)
        number += 1
    return number


async def test_who_failed_is_known_until_its_work_counts(store: Store, world: World) -> None:
    cohort = Cohort(size=1, over_selection=2)
    actor, _, training = await world.running(3, cohort=cohort, target_num_updates=1000)
    training_id = training.training_id
    failing, other = await members(store, training_id, actor)
    await fail(world, training_id, failing)
    await world.submit(training_id, 0, other)
    await world.commit(training_id)
    number = await until_asked(world, training_id, actor, failing, 1)
    assert [one.user_id for one in await store.rounds.awaited(training_id, number)] == [failing]
    await world.submit(training_id, number, failing)
    await world.commit(training_id)
    number = await until_asked(world, training_id, actor, failing, number + 1)
    assert await store.rounds.awaited(training_id, number) == []


async def test_labels_select_and_may_change_between_rounds(store: Store, world: World) -> None:
    actor = await world.user(Role.ACTOR)
    with_gpu = sorted([await world.user(gpu="yes", site=str(number)) for number in range(2)])
    without = await world.user(gpu="no")
    cohort = Cohort(labels={"gpu": "yes"})
    made = await world.training(actor, [*with_gpu, without], cohort=cohort, target_num_updates=4)
    training_id = made.training_id
    await store.trainings.start(training_id, actor, None, world.now)
    assert await members(store, training_id, actor) == with_gpu
    await store.users.set_labels(without, {"gpu": "yes"})
    await store.users.set_labels(with_gpu[0], {})
    # The open round keeps its cohort.
    assert await members(store, training_id, actor) == with_gpu
    await finish(world, training_id, actor)
    assert await members(store, training_id, actor) == sorted([with_gpu[1], without])
    await store.users.set_labels(without, {})
    await store.users.set_labels(with_gpu[1], {"site": "1"})
    await finish(world, training_id, actor)
    ended = await ending(store, training_id, actor)
    assert (ended.reason, ended.message) == ("NO_PARTICIPANTS", "no participants with the cohort's labels are left")
    assert (await store.trainings.get(training_id, actor)).round == 1
    assert [one["labels"] for one in await recorded(store, "user_updated")] == [1, 0, 0, 1]
    await check(store)


async def test_a_repeated_round_draws_as_many_others_as_are_missing(store: Store, world: World) -> None:
    policy = RoundPolicy(0, MINUTE, on_missed=OnMissed.RETRY, max_retries=3)
    cohort = Cohort(size=3, seed=5)
    actor, users, training = await world.running(9, cohort=cohort, round_policy=policy)
    training_id = training.training_id
    first = await members(store, training_id, actor)
    await world.submit(training_id, 0, first[0])
    await store.rounds.judge(training_id, 0, due=True, now=world.now, attempt=1)
    others = [user for user in users if user not in first]
    joined = draw(5, training_id, 0, 2, others, 2)
    assert await members(store, training_id, actor) == sorted([*first, *joined])
    found = await current(store, training_id)
    assert (found.attempt, found.needed, found.eligible, found.chosen, found.expected) == (2, 3, 6, 5, 3)
    (extended,) = await recorded(store, "round_extended")
    assert (extended["joined"], extended["chosen"], extended["eligible"]) == (joined, joined, 6)
    assert "RoundStarted" in await kinds_of(store, training_id, joined[0])
    await world.submit(training_id, 0, joined[0])
    assert (await world.submit(training_id, 0, first[2]))[1]
    await check(store)


async def test_a_repeated_round_asks_only_who_is_connected(store: Store, world: World) -> None:
    policy = RoundPolicy(0, MINUTE, on_missed=OnMissed.RETRY, max_retries=3)
    actor, users, training = await world.running(4, cohort=Cohort(size=2, available_only=True), round_policy=policy)
    training_id = training.training_id
    assert await store.rounds.open(training_id, 0, users[:2], world.now)
    assert await members(store, training_id, actor) == users[:2]
    await store.rounds.judge(training_id, 0, due=True, now=world.now, attempt=1, connected=users[:3])
    assert await members(store, training_id, actor) == users[:3]


async def test_a_whole_cohort_that_leaves_is_drawn_anew(store: Store, world: World) -> None:
    actor, users, training = await world.running(4, cohort=Cohort(size=1, seed=3))
    training_id = training.training_id
    chosen = await members(store, training_id, actor)
    await store.trainings.remove_clients(training_id, actor, chosen, world.now)
    left = [user for user in users if user not in chosen]
    assert await members(store, training_id, actor) == draw(3, training_id, 1, 1, left, 1)
    await check(store)


async def test_a_daisy_chain_keeps_the_cohort_with_which_it_began(store: Store, world: World) -> None:
    cohort = Cohort(size=3, over_selection=2)
    actor, _users, training = await world.running(8, cohort=cohort, aggregation=fed_dc(1, 3, 7), target_num_updates=2)
    training_id = training.training_id
    asked = await members(store, training_id, actor)
    assert len(asked) == 6
    for user in asked[:3]:
        await world.submit(training_id, 0, user)
    await world.commit(training_id)
    for number in (1, 2):
        assert await members(store, training_id, actor) == asked[:3]
        assert (await current(store, training_id)).expected == 3
        for user in asked[:3]:
            await world.submit(training_id, number, user)
        await world.commit(training_id)
    # The next chain begins with a cohort of its own.
    assert (await current(store, training_id)).chosen == 6
    await check(store)


def selecting(**changed: Any) -> dict[str, Any]:
    selection = Selection("score", Goal.MAXIMIZE)
    return {"metric_names": ("score",), "selection": selection, "cohort": Cohort(size=1), **changed}


async def to_evaluation(store: Store, world: World, **spec: Any) -> tuple[str, str, Round]:
    actor, _, training = await world.running(4, **spec)
    training_id = training.training_id
    await finish(world, training_id, actor)
    found = await current(store, training_id)
    assert found.kind.public_name == "EVALUATE"
    return actor, training_id, found


async def test_a_selection_asks_everybody_to_evaluate(store: Store, world: World) -> None:
    actor, training_id, found = await to_evaluation(store, world, **selecting())
    assert (found.members, found.expected) == (4, 4)
    for user in await members(store, training_id, actor):
        await world.report(training_id, 1, user, 1, score=1.0)
    assert (await current(store, training_id)).state is RoundState.AGGREGATING


async def test_an_evaluation_policy_draws_a_cohort_to_evaluate(store: Store, world: World) -> None:
    spec = selecting(evaluation_policy=RoundPolicy(on_missed=OnMissed.FAIL))
    _, _, found = await to_evaluation(store, world, **spec)
    assert (found.members, found.expected) == (1, 1)


async def test_without_a_selection_evaluation_rounds_draw_their_own_cohort(store: Store, world: World) -> None:
    spec = {"metric_names": ("score",), "cohort": Cohort(size=2, seed=4)}
    actor, training_id, found = await to_evaluation(store, world, **spec)
    assert (found.members, found.expected) == (2, 2)
    assert (await recorded(store, "round_opened"))[1]["chosen"] == await members(store, training_id, actor)


@pytest.mark.parametrize(
    ("cohort", "field"),
    [
        (Cohort(size=4), "spec.cohort.size"),
        (Cohort(min_available=4), "spec.cohort.min_available"),
        (Cohort(labels={"gpu": "yes"}), "spec.cohort.labels"),
        (Cohort(fraction=0.3), "spec.round_policy.min_updates"),
    ],
)
async def test_an_impossible_cohort_is_rejected_at_the_start(
    store: Store, world: World, cohort: Cohort, field: str
) -> None:
    actor, users = await world.user(Role.ACTOR), await world.users(3)
    made = await world.training(actor, users, cohort=cohort, round_policy=RoundPolicy(2))
    with pytest.raises(CohortImpossible) as impossible:
        await store.trainings.start(made.training_id, actor, None, world.now)
    assert impossible.value.metadata == {"field": field}
    found = await store.trainings.get(made.training_id, actor)
    assert (found.state, found.start_time, found.last_sequence) == (TrainingState.INITIAL, None, 0)


async def test_released_members_are_asked_again_if_an_update_is_lost(store: Store, world: World) -> None:
    actor, _, training = await world.running(3, cohort=Cohort(size=2, over_selection=1.5))
    training_id = training.training_id
    first, second, third = await members(store, training_id, actor)
    lost, _ = await world.submit(training_id, 0, first)
    await world.submit(training_id, 0, second)
    task = await store.rounds.find_aggregation(training_id)
    assert task is not None
    await store.rounds.reopen(training_id, 0, task.round.epoch, [lost.update_id], world.now)
    assert (await kinds_of(store, training_id, third))[-2:] == ["RoundExtended", "RoundStarted"]
    assert (await kinds_of(store, training_id, first))[-3:] == ["RoundExtended", "UpdateLost", "RoundStarted"]
    assert "RoundStarted" not in (await kinds_of(store, training_id, second))[-1:]
    assert (await world.submit(training_id, 0, third))[1]
    await world.commit(training_id)
    await check(store)


async def test_labels_that_change_while_a_round_opens_apply_from_the_next_one(
    store: Store, world: World, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, user = await world.user(Role.ACTOR), await world.user(gpu="yes")
    made = await world.training(actor, [user], cohort=Cohort(labels={"gpu": "yes"}))
    loop = asyncio.get_running_loop()
    changes: list[Future[None]] = []

    def change(_point: str) -> None:
        """Changes the labels when the cohort is drawn, and waits until that is done, or waits for the round."""
        changes.append(asyncio.run_coroutine_threadsafe(store.users.set_labels(user, {}), loop))
        if database:
            until(lambda: changes[0].done() or waits_for_a_lock(database))

    monkeypatch.setattr(opening, "reached", change)
    await store.trainings.start(made.training_id, actor, None, world.now)
    await asyncio.wrap_future(changes[0])
    assert await members(store, made.training_id, actor) == [user]
    actions = [entry.action for entry in await chained(store)]
    assert actions.index("round_opened") < actions.index("user_updated")


def waits_for_a_lock(database: str) -> bool:
    waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(database) as connection:
        return connection.execute(waiting).fetchone() is not None


async def test_a_view_of_a_round_is_of_one_moment(
    store: Store, world: World, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody joins a round while it is read; only PostgreSQL does both at once."""
    policy = RoundPolicy(0, MINUTE, on_missed=OnMissed.RETRY, max_retries=3)
    actor, users, training = await world.running(2, round_policy=policy, cohort=Cohort(size=1))
    loop, real = asyncio.get_running_loop(), verbs.view

    def view(*found: Any) -> RoundView:
        repeat = store.rounds.judge(training.training_id, 0, due=True, now=world.now)
        change = asyncio.run_coroutine_threadsafe(repeat, loop)
        if database:
            change.result()
        return real(*found)

    monkeypatch.setattr(verbs, "view", view)
    seen = await store.rounds.explain(training.training_id, None, actor)
    assert (seen.round.attempt, len(seen.members)) == (1, 1)
    monkeypatch.setattr(verbs, "view", real)
    seen = await store.rounds.explain(training.training_id, None, actor)
    assert (seen.round.attempt, {one.user_id for one in seen.members}) == (2, set(users))


async def test_the_mean_says_over_whom_it_was_made(store: Store, world: World) -> None:
    actor, users, training = await world.running(3, round_policy=RoundPolicy(2), target_num_updates=1)
    training_id = training.training_id
    await world.submit(training_id, 0, users[0])
    await world.submit(training_id, 0, users[2])
    await world.commit(training_id)
    found = await store.trainings.get(training_id, actor)
    mean, *reports = await store.models.metrics(found.model_id, actor, (-1, ""), 100)
    assert (mean.reporter_id, mean.num_reporters, mean.num_participants) == (None, 2, 3)
    assert mean.reporter_ids == (users[0], users[2])
    assert [(one.reporter_id, one.num_reporters, one.reporter_ids) for one in reports] == [
        (users[0], 0, ()),
        (users[2], 0, ()),
    ]
    seen = (await store.models.metrics(found.model_id, users[1], (-1, ""), 100))[0]
    assert (seen.num_reporters, seen.reporter_ids) == (2, ())
    closed = [one.payload for one in await log(store, training_id, users[1]) if isinstance(one.payload, RoundClosed)]
    assert [one.num_updates for one in closed] == [2]
    started = [one for one in await log(store, training_id, users[1]) if isinstance(one.payload, RoundStarted)]
    assert len(started) == 1
