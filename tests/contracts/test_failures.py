"""Participants that fail or are absent: rounds do not wait for them; on both databases."""

from datetime import timedelta
from pathlib import Path

import pytest

from aggregations import fed_dc
from contracts.audits import check, recorded
from contracts.coordination import coordinating
from contracts.world import World, new_id
from fedround_server.domain.errors import MetricsExist, NotInCohort, RoundNotOpen, TrainingNotFound, UpdateExists
from fedround_server.domain.event import Event, ParticipantFailed, RoundStarted, TrainingFailed, UpdateAccepted
from fedround_server.domain.failure import MAX_MESSAGE
from fedround_server.domain.policy import OnFailure, OnMissed, RoundPolicy
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.round import Round, RoundState, WaitRule
from fedround_server.domain.token import new_token
from fedround_server.domain.training import TrainingFailure, TrainingState
from fedround_server.domain.uncertainty import Swag
from fedround_server.store import Store

MINUTE = timedelta(minutes=1)


async def fail(world: World, training_id: str, user: str, number: int = 0, message: str = "boom") -> bool:
    """Reports a failure; returns whether that closed the round."""
    return await world.store.submissions.report_failure(training_id, number, user, "TRAIN_FAILED", message, world.now)


async def current(store: Store, training_id: str) -> Round:
    found = await store.rounds.current(training_id)
    assert found is not None
    return found


async def log(store: Store, training_id: str, user: str) -> list[Event]:
    return list((await store.events.poll(training_id, user, 0, 1000)).events)


async def failed(store: Store, training_id: str, actor: str, number: int | None = None) -> dict[str, str]:
    """The reasons by user of those that a round does not wait for."""
    view = await store.rounds.explain(training_id, number, actor)
    return {one.user_id: one.failure.reason for one in view.members if one.failure is not None}


async def ending(store: Store, training_id: str, actor: str) -> TrainingFailure:
    training = await store.trainings.get(training_id, actor)
    assert training.state is TrainingState.ERROR
    assert training.failure is not None
    return training.failure


async def test_a_round_goes_on_without_who_failed(store: Store, world: World) -> None:
    actor, (first, second, third), training = await world.running(3)
    training_id = training.training_id
    await world.submit(training_id, 0, first)
    assert not await fail(world, training_id, second)
    view = await store.rounds.explain(training_id, None, actor)
    assert (view.round.arrived, view.round.expected, view.round.failed) == (1, 2, 1)
    assert view.wait_rule is WaitRule.ALL_UPDATES
    (one,) = (await store.trainings.get(training_id, actor)).failures
    assert (one.user_id, one.round, one.reason, one.message) == (second, 0, "TRAIN_FAILED", "boom")
    assert one.name == (await store.users.get(second)).name
    assert (await store.trainings.get(training_id, third)).failures == ()
    assert (await world.submit(training_id, 0, third))[1]
    assert await world.commit(training_id)
    # It is asked again.
    after = await current(store, training_id)
    assert (after.number, after.expected, after.failed) == (1, 3, 0)
    assert await failed(store, training_id, actor, 0) == {second: "TRAIN_FAILED"}


async def test_the_last_one_to_fail_closes_the_round(store: Store, world: World) -> None:
    _, (first, second), training = await world.running(2)
    await world.submit(training.training_id, 0, first)
    assert await fail(world, training.training_id, second)
    assert (await current(store, training.training_id)).state is RoundState.AGGREGATING


async def test_the_actor_reads_it_and_no_participant_does(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2)
    await fail(world, training.training_id, first)
    name = (await store.users.get(first)).name
    payload = (await log(store, training.training_id, actor))[-1].payload
    assert payload == ParticipantFailed(0, first, name, "TRAIN_FAILED", "boom", 0, 1)
    for user in (first, second):
        assert not any(
            isinstance(one.payload, ParticipantFailed) for one in await log(store, training.training_id, user)
        )


async def test_nobody_left_ends_the_training_and_names_them_with_their_reasons(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2)
    await fail(world, training.training_id, first, message="no data")
    await fail(world, training.training_id, second, message="x" * 500)
    failure = await ending(store, training.training_id, actor)
    names = [(await store.users.get(user)).name for user in (first, second)]
    assert failure.reason == "PARTICIPANTS_FAILED"
    assert failure.message == "2 of 2 participants failed, 0 submitted"
    assert f"{names[0]} (TRAIN_FAILED: no data)" in failure.actor_message
    assert f"{names[1]} (TRAIN_FAILED: {'x' * 200}...)" in failure.actor_message
    (last,) = [one.payload for one in await log(store, training.training_id, first)][-1:]
    assert last == TrainingFailed("PARTICIPANTS_FAILED", failure.message)
    assert len((await store.trainings.get(training.training_id, actor)).failures) == 2


async def test_min_updates_are_needed_all_the_same(store: Store, world: World) -> None:
    actor, clients, training = await world.running(4, round_policy=RoundPolicy(min_updates=2))
    training_id = training.training_id
    await world.submit(training_id, 0, clients[0])
    for client in clients[1:3]:
        assert not await fail(world, training_id, client)
    assert (await current(store, training_id)).expected == 2
    assert (await store.rounds.explain(training_id, None, actor)).wait_rule is WaitRule.MIN_UPDATES
    assert not await fail(world, training_id, clients[3])
    failure = await ending(store, training_id, actor)
    assert failure.message == "3 of 4 participants failed, 1 submitted"
    assert len(failure.missing) == 3


async def test_a_policy_may_end_the_training_at_the_first_failure(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2, round_policy=RoundPolicy(on_failure=OnFailure.FAIL))
    await world.submit(training.training_id, 0, first)
    assert not await fail(world, training.training_id, second)
    failure = await ending(store, training.training_id, actor)
    assert failure.reason == "PARTICIPANTS_FAILED"
    assert (await store.users.get(second)).name in failure.actor_message
    # The same again, after a lost reply.
    assert not await fail(world, training.training_id, second)


async def test_a_failure_is_recorded_once(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2)
    for message in ("one", "two"):
        assert not await fail(world, training.training_id, first, message=message)
    assert [one.message for one in (await store.trainings.get(training.training_id, actor)).failures] == ["one"]
    assert len(await recorded(store, "participant_failed")) == 1
    await world.submit(training.training_id, 0, second)
    # After the round, too.
    assert not await fail(world, training.training_id, first)
    (entry,) = await recorded(store, "participant_failed")
    assert entry == {"subject": first, "user_id": "", "round": 0, "reason": "TRAIN_FAILED"}
    await check(store)


async def test_who_submits_all_the_same_counts(store: Store, world: World) -> None:
    actor, (first, second, third), training = await world.running(3)
    training_id = training.training_id
    await fail(world, training_id, first)
    await world.submit(training_id, 0, second)
    assert not (await world.submit(training_id, 0, first))[1]
    payload = (await log(store, training_id, actor))[-1].payload
    assert isinstance(payload, UpdateAccepted)
    assert (payload.updates_arrived, payload.updates_expected) == (2, 3)
    assert (await current(store, training_id)).failed == 0
    assert await failed(store, training_id, actor) == {}
    assert [entry["subject"] for entry in await recorded(store, "failure_withdrawn")] == [first]
    assert (await world.submit(training_id, 0, third))[1]
    await check(store)


async def test_failures_are_rejected_for_the_right_reasons(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2, metric_names=("loss",))
    training_id = training.training_id
    late = await world.user()
    await store.trainings.register(training_id, actor, [late], world.now)
    for user in (actor, await world.user()):
        with pytest.raises(TrainingNotFound):
            await fail(world, training_id, user)
    with pytest.raises(TrainingNotFound):
        await fail(world, new_id(), first)
    with pytest.raises(NotInCohort):
        await fail(world, training_id, late)
    with pytest.raises(RoundNotOpen, match="the current round is 0"):
        await fail(world, training_id, first, 1)
    await world.submit(training_id, 0, first)
    with pytest.raises(UpdateExists, match="it stands"):
        await fail(world, training_id, first)
    await world.submit(training_id, 0, second)
    with pytest.raises(RoundNotOpen, match="AGGREGATING"):
        await fail(world, training_id, late)
    await world.commit(training_id)
    await world.report(training_id, 1, first, 1, loss=0.5)
    with pytest.raises(MetricsExist, match="they stand"):
        await fail(world, training_id, first, 1)
    with pytest.raises(RoundNotOpen):
        await fail(world, training_id, first, 0)
    assert await recorded(store, "participant_failed") == []


async def test_who_failed_may_leave_and_the_last_one_to_leave_ends_it(store: Store, world: World) -> None:
    actor, (first, second, third), training = await world.running(3)
    training_id = training.training_id
    await fail(world, training_id, first)
    await store.trainings.remove_clients(training_id, actor, [first], world.now)
    after = await current(store, training_id)
    assert (after.expected, after.failed) == (2, 0)
    await fail(world, training_id, second)
    await store.trainings.remove_clients(training_id, actor, [third], world.now)
    assert (await ending(store, training_id, actor)).reason == "PARTICIPANTS_FAILED"


async def test_a_missed_deadline_names_the_failed_with_their_reasons(store: Store, world: World) -> None:
    policy = RoundPolicy(2, MINUTE, on_missed=OnMissed.RETRY, max_retries=1)
    actor, (first, second, third), training = await world.running(3, round_policy=policy)
    training_id = training.training_id
    await world.submit(training_id, 0, first)
    await fail(world, training_id, second)
    for attempt in (1, 2):
        assert (await current(store, training_id)).failed == 1
        await store.rounds.judge(training_id, 0, due=True, now=world.now, attempt=attempt)
    failure = await ending(store, training_id, actor)
    names = sorted(
        [f"{(await store.users.get(second)).name} (TRAIN_FAILED: boom)", (await store.users.get(third)).name]
    )
    assert (failure.reason, failure.missing) == ("DEADLINE_MISSED", tuple(names))


async def test_a_chain_goes_on_without_who_failed(store: Store, world: World) -> None:
    actor, clients, training = await world.running(3, aggregation=fed_dc(1, 2), target_num_updates=1)
    training_id = training.training_id
    for client in clients[:2]:
        await world.submit(training_id, 0, client)
    assert await fail(world, training_id, clients[2])
    assert await world.commit(training_id)
    view = await store.rounds.explain(training_id, None, actor)
    assert {one.user_id for one in view.members} == set(clients[:2])
    for client in clients[:2]:
        started = [one.payload for one in await log(store, training_id, client)][-1]
        assert isinstance(started, RoundStarted)
        assert started.assigned
    await fail(world, training_id, clients[0], 1)
    assert (await world.submit(training_id, 1, clients[1]))[1]
    assert await world.commit(training_id)
    assert (await store.trainings.get(training_id, actor)).state is TrainingState.COMPLETED


async def test_evaluation_and_swag_rounds_go_on_without_who_failed(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(
        2, metric_names=("loss",), uncertainty=Swag(10, rank=0), target_num_updates=1
    )
    training_id = training.training_id
    for client in (first, second):
        await world.submit(training_id, 0, client)
    await world.commit(training_id)
    assert await world.report(training_id, 1, first, 1, loss=0.5) is False
    assert await fail(world, training_id, second, 1)
    await world.commit(training_id)
    assert (await current(store, training_id)).kind is KINDS["SWAG"]
    await fail(world, training_id, second, 2)
    assert (await world.submit(training_id, 2, first))[1]
    await world.commit(training_id)
    assert (await store.trainings.get(training_id, actor)).state is TrainingState.COMPLETED


async def test_nobody_left_in_an_evaluation_round_ends_the_training(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1, metric_names=("loss",))
    await world.submit(training.training_id, 0, client)
    await world.commit(training.training_id)
    await fail(world, training.training_id, client, 1)
    assert (await ending(store, training.training_id, actor)).reason == "PARTICIPANTS_FAILED"
    assert (await store.trainings.get(training.training_id, actor)).model_version == 1


async def test_what_is_stored_has_no_token_and_no_control_characters(store: Store, tmp_path: Path) -> None:
    token = new_token()
    async with coordinating(store, tmp_path) as coordination:
        actor, (client, _), training = await coordination.running(2)
        message = f"\0\x1b[31m{token}\u202e" + "!" * MAX_MESSAGE
        await coordination.coordinator.rounds.report_failure(training.training_id, 0, client, "X", message)
        (stored,) = (await store.trainings.get(training.training_id, actor)).failures
    assert stored.message.startswith("  [31mfr_... !!!")
    assert len(stored.message) == MAX_MESSAGE


async def test_a_failure_that_closes_a_round_starts_its_aggregation(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, (first, second), training = await coordination.running(2)
        await coordination.submit(training.training_id, 0, first)
        await coordination.coordinator.rounds.report_failure(training.training_id, 0, second, "X", "")
        await coordination.until(actor, training.training_id, lambda training: training.round == 1)
