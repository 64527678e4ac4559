"""Rounds that are pending, since they wait for connections; on both databases."""

import pytest

from contracts.audits import check
from contracts.test_cohort import finish, kinds_of, members
from contracts.test_failures import current, ending, log
from contracts.world import World
from fedround_server.domain.cohort import Cohort
from fedround_server.domain.errors import RoundNotOpen
from fedround_server.domain.event import RoundStarted
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import Stop, TrainingState
from fedround_server.domain.user import Role
from fedround_server.store import Store


async def test_a_pending_round_that_never_opens_leaves_no_trace(store: Store, world: World) -> None:
    actor, users, training = await world.running(2, cohort=Cohort(min_available=2))
    training_id = training.training_id
    assert (training.state, training.round, training.updates_expected) == (TrainingState.ONGOING, 0, 0)
    assert (await current(store, training_id)).state is RoundState.PENDING
    assert await store.rounds.pending(training_id, 0) is not None
    with pytest.raises(RoundNotOpen, match="waits for participants"):
        await world.submit(training_id, 0, users[0])
    assert await kinds_of(store, training_id, users[0]) == ["TrainingStarted"]
    await store.trainings.remove(training_id, actor, force=True, now=world.now)
    assert await store.rounds.unfinished() == []
    assert await store.rounds.open(training_id, 0, users, world.now)
    assert await store.rounds.pending(training_id, 0) is None
    await check(store)


async def test_a_pending_round_ends_with_its_last_participant(store: Store, world: World) -> None:
    actor, users, training = await world.running(2, cohort=Cohort(min_available=2))
    training_id = training.training_id
    for user in users:
        await store.users.remove(user, world.now)
    assert (await ending(store, training_id, actor)).reason == "NO_PARTICIPANTS"
    assert await store.rounds.current(training_id) is None
    await check(store)


async def test_a_later_round_is_pending_too(store: Store, world: World) -> None:
    actor, users, training = await world.running(2, cohort=Cohort(min_available=1), target_num_updates=2)
    training_id = training.training_id
    assert await store.rounds.open(training_id, 0, users[:1], world.now)
    await finish(world, training_id, actor)
    found = await current(store, training_id)
    assert (found.state, found.number) == (RoundState.PENDING, 1)
    assert await store.rounds.open(training_id, 1, users, world.now)
    opened = await current(store, training_id)
    assert (opened.state, opened.members, opened.model_version) == (RoundState.OPEN, 2, 1)
    assert opened.open_time > found.open_time
    await finish(world, training_id, actor)
    assert (await store.trainings.get(training_id, actor)).state is TrainingState.COMPLETED
    await check(store)


async def test_a_round_for_connected_participants_waits_for_one_with_the_labels(store: Store, world: World) -> None:
    actor = await world.user(Role.ACTOR)
    labelled, other = await world.user(gpu="yes"), await world.user()
    cohort = Cohort(labels={"gpu": "yes"}, available_only=True)
    made = await world.training(actor, [labelled, other], cohort=cohort)
    await store.trainings.start(made.training_id, actor, None, world.now)
    assert not await store.rounds.open(made.training_id, 0, [other], world.now)
    assert (await current(store, made.training_id)).state is RoundState.PENDING
    assert await store.rounds.open(made.training_id, 0, [other, labelled], world.now)
    assert await members(store, made.training_id, actor) == [labelled]


@pytest.mark.parametrize("when", list(Stop))
async def test_a_training_whose_round_is_pending_can_be_stopped(store: Store, world: World, when: Stop) -> None:
    actor, users, training = await world.running(2, cohort=Cohort(min_available=2))
    stopped = await store.control.stop(training.training_id, actor, when, None, world.now)
    assert (stopped.state, stopped.round) == (TrainingState.COMPLETED, 0)
    assert await store.rounds.open(training.training_id, 0, users, world.now)
    assert await store.rounds.unfinished() == []
    await check(store)


async def test_a_pending_round_does_not_open_during_a_pause(store: Store, world: World) -> None:
    actor, users, training = await world.running(2, cohort=Cohort(min_available=2))
    training_id = training.training_id
    await store.control.pause(training_id, actor, None, world.now)
    assert not await store.rounds.open(training_id, 0, users, world.now)
    assert (await current(store, training_id)).state is RoundState.PENDING
    await store.control.resume(training_id, actor, None, world.now)
    assert await store.rounds.open(training_id, 0, users, world.now)
    assert (await current(store, training_id)).state is RoundState.OPEN


async def test_a_pending_round_gets_the_latest_configuration(store: Store, world: World) -> None:
    actor, users, training = await world.running(1, cohort=Cohort(min_available=1))
    training_id = training.training_id
    await store.control.update_config(training_id, actor, {"rate": 0.5}, {}, None, world.now)
    assert await store.rounds.open(training_id, 0, users, world.now)
    (started,) = [
        one.payload for one in await log(store, training_id, users[0]) if isinstance(one.payload, RoundStarted)
    ]
    assert started.config == {"rate": 0.5}
