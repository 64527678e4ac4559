"""Stopping, pausing and resuming trainings, in every state of a round; on both databases."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from aggregations import fed_dc
from contracts.audits import check, recorded
from contracts.coordination import coordinating
from contracts.world import World, new_id
from fedround_server.domain.errors import (
    FieldInvalid,
    NotActor,
    TrainingNotFound,
    TrainingNotPaused,
    TrainingNotRunning,
    TrainingPaused,
)
from fedround_server.domain.event import StopRequested, TrainingFinished, TrainingResumed
from fedround_server.domain.event import TrainingPaused as Paused
from fedround_server.domain.model import BEST
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import Goal, Selection, Stop, Training, TrainingState
from fedround_server.domain.uncertainty import Swag
from fedround_server.domain.user import Role
from fedround_server.store import Store

EVALUATED = {"metric_names": ("loss",), "target_num_updates": 3}


async def stop(world: World, training: Training, when: Stop = Stop.AFTER_ROUND, request: str | None = None) -> Training:
    return await world.store.control.stop(training.training_id, training.actor_id, when, request, world.now)


async def pause(world: World, training: Training, request: str | None = None) -> Training:
    return await world.store.control.pause(training.training_id, training.actor_id, request, world.now)


async def resume(world: World, training: Training, request: str | None = None) -> Training:
    return await world.store.control.resume(training.training_id, training.actor_id, request, world.now)


async def state(store: Store, training: Training) -> tuple[int, RoundState]:
    found = await store.rounds.current(training.training_id)
    assert found is not None
    return found.number, found.state


async def train(world: World, training: Training, clients: list[str], number: int) -> None:
    """Runs a round of training to its end."""
    for client in clients:
        await world.submit(training.training_id, number, client)
    assert await world.commit(training.training_id)


async def evaluate(world: World, training: Training, clients: list[str], number: int) -> None:
    """Runs an evaluation round to its end."""
    for client in clients:
        await world.report(training.training_id, number, client, 1, loss=1.0)
    assert await world.commit(training.training_id)


async def events(store: Store, training: Training, user: str) -> list[type]:
    page = await store.events.poll(training.training_id, user, 0, 1000)
    return [type(event.payload) for event in page.events]


@pytest.mark.parametrize("when", Stop)
async def test_a_stop_with_an_open_round(store: Store, world: World, when: Stop) -> None:
    actor, clients, training = await world.running(2, target_num_updates=3)
    await train(world, training, clients, 0)
    await world.submit(training.training_id, 1, clients[0])
    stopped = await stop(world, training, when)
    assert stopped.stop is when
    if when is Stop.AFTER_ROUND:
        assert (stopped.state, await state(store, training)) == (TrainingState.ONGOING, (1, RoundState.OPEN))
        view = await store.rounds.explain(training.training_id, None, actor)
        assert (view.stopped, view.paused) == (True, False)
        await world.submit(training.training_id, 1, clients[1])
        await world.commit(training.training_id)
    ended = await store.trainings.get(training.training_id, actor)
    expected = (2, RoundState.DONE) if when is Stop.AFTER_ROUND else (1, RoundState.ABANDONED)
    assert (ended.state, ended.model_version) == (TrainingState.COMPLETED, expected[0])
    assert await state(store, training) == (1, expected[1])
    # The versions are kept.
    for version in range(ended.model_version + 1):
        assert (await store.models.get_version(training.model_id, version, actor)).stored
    for user in (actor, *clients):
        last = list((await store.events.poll(training.training_id, user, 0, 1000)).events)[-1]
        assert last.payload == TrainingFinished(training.model_id, expected[0], stopped_early=False, stopped=True)
    assert (StopRequested in await events(store, training, clients[0])) == (when is Stop.AFTER_ROUND)
    (entry,) = await recorded(store, "training_completed")
    assert (entry["early"], entry["stopped"]) == (False, True)
    await check(store)


@pytest.mark.parametrize("when", Stop)
async def test_a_round_that_is_being_aggregated_is_committed_before_the_stop(
    store: Store, world: World, when: Stop
) -> None:
    _, clients, training = await world.running(2, **EVALUATED)
    for client in clients:
        await world.submit(training.training_id, 0, client)
    stopping = await stop(world, training, when)
    assert (stopping.state, await state(store, training)) == (TrainingState.ONGOING, (0, RoundState.AGGREGATING))
    await world.commit(training.training_id)
    ended = await store.trainings.get(training.training_id, training.actor_id)
    # No evaluation round follows.
    assert (ended.state, ended.model_version, ended.round) == (TrainingState.COMPLETED, 1, 0)
    await check(store)


@pytest.mark.parametrize("when", Stop)
async def test_a_stop_with_an_open_evaluation_round_keeps_the_best_version(
    store: Store, world: World, when: Stop
) -> None:
    _, clients, training = await world.running(2, **EVALUATED, selection=Selection("loss", Goal.MINIMIZE))
    await train(world, training, clients, 0)
    await evaluate(world, training, clients, 1)
    await train(world, training, clients, 2)
    await stop(world, training, when)
    if when is Stop.AFTER_ROUND:
        await evaluate(world, training, clients, 3)
    ended = await store.trainings.get(training.training_id, training.actor_id)
    assert (ended.state, ended.model_version, ended.best_version) == (TrainingState.COMPLETED, 2, 1)
    assert (await store.models.get_version(training.model_id, None, training.actor_id, BEST)).version == 1


@pytest.mark.parametrize("when", Stop)
async def test_a_stop_with_an_open_round_of_swag(store: Store, world: World, when: Stop) -> None:
    _, clients, training = await world.running(2, uncertainty=Swag(samples=2, every=1), target_num_updates=3)
    await train(world, training, clients, 0)
    assert (await store.trainings.get(training.training_id, training.actor_id)).state is TrainingState.SWAG_ROUND
    await stop(world, training, when)
    if when is Stop.AFTER_ROUND:
        await train(world, training, clients, 1)
    ended = await store.trainings.get(training.training_id, training.actor_id)
    assert (ended.state, ended.model_version, ended.round) == (TrainingState.COMPLETED, 1, 1)
    await check(store)


async def test_a_stop_after_the_round_may_become_one_at_once_and_not_the_reverse(store: Store, world: World) -> None:
    _, clients, training = await world.running(1)
    await stop(world, training)
    assert (await stop(world, training, Stop.NOW)).state is TrainingState.COMPLETED
    _, clients, other = await world.running(1)
    await world.submit(other.training_id, 0, clients[0])
    await stop(world, other, Stop.NOW)
    assert (await stop(world, other)).stop is Stop.NOW


async def test_a_stop_at_once_does_not_wait_for_updates_that_were_lost(store: Store, world: World) -> None:
    _, clients, training = await world.running(2)
    sent = [await world.submit(training.training_id, 0, client) for client in clients]
    await stop(world, training, Stop.NOW)
    assert await store.rounds.reopen(training.training_id, 0, 1, [sent[0][0].update_id], world.now)
    ended = await store.trainings.get(training.training_id, training.actor_id)
    assert (ended.state, ended.model_version) == (TrainingState.COMPLETED, 0)
    assert await state(store, training) == (0, RoundState.ABANDONED)
    await check(store)


async def test_a_stop_after_a_round_whose_cohort_leaves(store: Store, world: World) -> None:
    _, clients, training = await world.running(1)
    late = await world.user()
    await store.trainings.register(training.training_id, training.actor_id, [late], world.now)
    await stop(world, training)
    await store.trainings.remove_clients(training.training_id, training.actor_id, clients, world.now)
    ended = await store.trainings.get(training.training_id, training.actor_id)
    assert (ended.state, await state(store, training)) == (TrainingState.COMPLETED, (0, RoundState.ABANDONED))


@pytest.mark.parametrize("aggregating", [False, True])
async def test_no_round_opens_during_a_pause(store: Store, world: World, aggregating: bool) -> None:
    actor, clients, training = await world.running(2, **EVALUATED)
    for client in clients:
        if not aggregating:
            assert (await pause(world, training)).paused
            aggregating = True
        await world.submit(training.training_id, 0, client)
    if not (await store.trainings.get(training.training_id, actor)).paused:
        await pause(world, training)
    await world.commit(training.training_id)
    paused = await store.trainings.get(training.training_id, actor)
    assert (paused.state, paused.model_version, paused.paused) == (TrainingState.ONGOING, 1, True)
    assert await state(store, training) == (0, RoundState.DONE)
    assert await store.rounds.unfinished() == []
    view = await store.rounds.explain(training.training_id, None, actor)
    assert (view.paused, view.stopped) == (True, False)
    assert not await store.rounds.judge(training.training_id, None, due=False, now=world.now)
    resumed = await resume(world, training)
    assert (resumed.paused, resumed.round) == (False, 1)
    found = await store.rounds.current(training.training_id)
    assert found is not None
    assert (found.kind.name, found.state, found.model_version) == ("EVALUATE", RoundState.OPEN, 1)
    for user in (actor, *clients):
        seen = await events(store, training, user)
        assert seen.index(Paused) < seen.index(TrainingResumed)
    await check(store)


async def test_a_pause_in_an_open_round_that_ends_before_the_round_changes_nothing(store: Store, world: World) -> None:
    _, clients, training = await world.running(1)
    await pause(world, training)
    await resume(world, training)
    assert await state(store, training) == (0, RoundState.OPEN)
    await train(world, training, clients, 0)
    assert await state(store, training) == (1, RoundState.OPEN)


async def test_a_pause_in_the_last_round_lets_the_training_be_completed(store: Store, world: World) -> None:
    _, clients, training = await world.running(1, target_num_updates=1)
    await pause(world, training)
    await train(world, training, clients, 0)
    ended = await store.trainings.get(training.training_id, training.actor_id)
    assert (ended.state, ended.paused, ended.stop) == (TrainingState.COMPLETED, False, None)


async def test_a_chain_goes_on_after_a_pause_with_those_who_stayed(store: Store, world: World) -> None:
    actor, clients, training = await world.running(3, aggregation=fed_dc(1, 3, seed=1), target_num_updates=1)
    await pause(world, training)
    await train(world, training, clients, 0)
    assert await state(store, training) == (0, RoundState.DONE)
    await store.trainings.remove_clients(training.training_id, actor, clients[:1], world.now)
    await resume(world, training)
    found = await store.rounds.current(training.training_id)
    assert found is not None
    assert (found.number, found.step, found.expected) == (1, 1, 2)
    for client in clients[1:]:
        _, assigned = await store.rounds.assigned(training.training_id, 1, client)
        assert assigned
    for number in (1, 2):
        await train(world, training, clients[1:], number)
    assert (await store.trainings.get(training.training_id, actor)).state is TrainingState.COMPLETED
    await check(store)


async def test_a_round_whose_cohort_leaves_during_a_pause_is_followed_by_another_one(
    store: Store, world: World
) -> None:
    actor, clients, training = await world.running(1)
    late = await world.user()
    await pause(world, training)
    await store.trainings.register(training.training_id, actor, [late], world.now)
    await store.trainings.remove_clients(training.training_id, actor, clients, world.now)
    assert await state(store, training) == (0, RoundState.ABANDONED)
    await resume(world, training)
    assert await state(store, training) == (1, RoundState.OPEN)
    await train(world, training, [late], 1)


@pytest.mark.parametrize("when", Stop)
async def test_a_stop_during_a_pause_between_rounds_ends_the_training(store: Store, world: World, when: Stop) -> None:
    _, clients, training = await world.running(1)
    await pause(world, training)
    await train(world, training, clients, 0)
    ended = await stop(world, training, when)
    assert (ended.state, ended.model_version, ended.paused) == (TrainingState.COMPLETED, 1, False)


async def test_a_training_that_stops_after_its_round_is_not_held_up_by_a_pause(store: Store, world: World) -> None:
    _, clients, training = await world.running(1)
    await stop(world, training)
    await pause(world, training)
    await train(world, training, clients, 0)
    assert (await store.trainings.get(training.training_id, training.actor_id)).state is TrainingState.COMPLETED


async def test_a_request_is_carried_out_once(store: Store, world: World) -> None:
    _, _, training = await world.running(1)
    first, second = new_id(), new_id()
    await pause(world, training, first)
    assert (await pause(world, training, first)).paused
    await resume(world, training, second)
    # Late copies of both.
    assert not (await pause(world, training, first)).paused
    assert not (await resume(world, training, second)).paused
    third = new_id()
    ended = await stop(world, training, Stop.NOW, third)
    assert await stop(world, training, Stop.NOW, third) == ended
    assert [len(await recorded(store, f"training_{done}")) for done in ("paused", "resumed", "completed")] == [1, 1, 1]
    with pytest.raises(FieldInvalid, match="was used before, to stop: use a new one"):
        await resume(world, training, third)


CHANGES: dict[str, Callable[[World, Training], Coroutine[Any, Any, Training]]] = {
    "stopped": stop,
    "paused": pause,
    "resumed": resume,
}


@pytest.mark.parametrize("what", CHANGES)
async def test_only_running_trainings_are_controlled(store: Store, world: World, what: str) -> None:
    actor, client = await world.user(Role.ACTOR), await world.user()
    training = await world.training(actor, [client], target_num_updates=1)
    with pytest.raises(TrainingNotRunning, match=f"is INITIAL: it cannot be {what}"):
        await CHANGES[what](world, training)
    await store.trainings.start(training.training_id, actor, None, world.now)
    await train(world, training, [client], 0)
    before = await store.trainings.get(training.training_id, actor)
    with pytest.raises(TrainingNotRunning, match=f"is COMPLETED: it cannot be {what}"):
        await CHANGES[what](world, training)
    assert await store.trainings.get(training.training_id, actor) == before


async def test_pausing_twice_and_resuming_what_is_not_paused_are_errors(store: Store, world: World) -> None:
    actor, _, training = await world.running(1)
    with pytest.raises(TrainingNotPaused, match="rounds open by themselves"):
        await resume(world, training)
    await pause(world, training)
    before = await store.trainings.get(training.training_id, actor)
    request = new_id()
    for _ in range(2):
        # A rejected request is not remembered.
        with pytest.raises(TrainingPaused, match="resume it"):
            await pause(world, training, request)
    assert await store.trainings.get(training.training_id, actor) == before
    assert not (await resume(world, training, request)).paused


@pytest.mark.parametrize("what", CHANGES)
async def test_only_the_actor_controls_a_training(store: Store, world: World, what: str) -> None:
    actor, (client,), training = await world.running(1)
    for user, error in ((client, NotActor), (await world.user(Role.ACTOR), TrainingNotFound)):
        changed = CHANGES[what]
        with pytest.raises(error):
            await changed(world, Training(**{**as_fields(training), "actor_id": user}))
    assert await store.trainings.get(training.training_id, actor) == training


def as_fields(training: Training) -> dict[str, Any]:
    return {name: getattr(training, name) for name in training.__slots__}


async def test_a_pause_lasts_across_a_restart_of_the_server(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path / "objects") as first:
        actor, (client,), training = await first.running(1)
        await first.coordinator.control.pause(training.training_id, actor, None)
        await first.submit(training.training_id, 0, client)
        await first.until(actor, training.training_id, lambda one: one.model_version == 1)
    async with coordinating(store, tmp_path / "objects") as second:
        await second.coordinator.recover()
        assert await state(store, training) == (0, RoundState.DONE)
        resumed = await second.coordinator.control.resume(training.training_id, actor, None)
        assert resumed.round == 1
        await second.submit(training.training_id, 1, client)
        await second.until(actor, training.training_id, lambda one: one.state is TrainingState.COMPLETED)


async def test_a_stop_is_remembered_across_a_restart_during_an_aggregation(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path / "objects") as first:
        actor, (client,), training = await first.running(1)
        first.engine.may_end.clear()
        await first.submit(training.training_id, 0, client)
        stopping = await first.coordinator.control.stop(training.training_id, actor, Stop.NOW, None)
        assert stopping.state is TrainingState.ONGOING
    async with coordinating(store, tmp_path / "objects") as second:
        await second.coordinator.recover()
        ended = await second.until(actor, training.training_id, lambda one: one.state.is_ended)
    assert (ended.state, ended.model_version, ended.stop) == (TrainingState.COMPLETED, 1, Stop.NOW)
