"""Every change by an actor in every state of a training and of its round, as a table; on both databases."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from contracts.audits import chained, check
from contracts.test_failures import fail
from contracts.world import World, new_id
from fedround_server.domain.cohort import Cohort
from fedround_server.domain.errors import FedroundError
from fedround_server.domain.training import Stop, Training
from fedround_server.domain.uncertainty import Swag
from fedround_server.domain.user import Role
from fedround_server.store import Store

Made = tuple[str, list[str], Training]
TARGET = 3


async def created(world: World, **spec: Any) -> Made:
    actor, users = await world.user(Role.ACTOR), await world.users(2)
    return actor, users, await world.training(actor, users, target_num_updates=TARGET, **spec)


async def running(world: World, **spec: Any) -> Made:
    return await world.running(2, target_num_updates=TARGET, **spec)


async def pending(world: World) -> Made:
    return await running(world, cohort=Cohort(min_available=2))


async def aggregating(world: World, **spec: Any) -> Made:
    made = await running(world, **spec)
    for user in made[1]:
        await world.submit(made[2].training_id, 0, user)
    return made


async def committed(world: World, **spec: Any) -> Made:
    made = await aggregating(world, **spec)
    await world.commit(made[2].training_id)
    return made


async def evaluating(world: World) -> Made:
    return await committed(world, metric_names=("loss",))


async def collecting(world: World) -> Made:
    return await committed(world, uncertainty=Swag(samples=2, every=1))


async def pause(world: World, made: Made) -> Made:
    await world.store.control.pause(made[2].training_id, made[0], None, world.now)
    return made


async def paused(world: World) -> Made:
    return await pause(world, await running(world))


async def paused_while_pending(world: World) -> Made:
    return await pause(world, await pending(world))


async def paused_between_rounds(world: World) -> Made:
    made = await pause(world, await aggregating(world))
    await world.commit(made[2].training_id)
    return made


async def stopping(world: World) -> Made:
    made = await running(world)
    await world.store.control.stop(made[2].training_id, made[0], Stop.AFTER_ROUND, None, world.now)
    return made


async def completed(world: World) -> Made:
    made = await running(world)
    await world.store.control.stop(made[2].training_id, made[0], Stop.NOW, None, world.now)
    return made


async def failed(world: World) -> Made:
    made = await running(world)
    for user in made[1]:
        await fail(world, made[2].training_id, user)
    return made


async def removed(world: World) -> Made:
    made = await running(world)
    await world.store.trainings.remove(made[2].training_id, made[0], force=True, now=world.now)
    return made


Change = Callable[[World, str, str, str], Awaitable[Training]]
CHANGES: dict[str, tuple[str, Change]] = {
    "stop": (
        "stop_requested",
        lambda world, id_, user, request: world.store.control.stop(id_, user, Stop.AFTER_ROUND, request, world.now),
    ),
    "stop now": (
        "stop_requested",
        lambda world, id_, user, request: world.store.control.stop(id_, user, Stop.NOW, request, world.now),
    ),
    "pause": (
        "training_paused",
        lambda world, id_, user, request: world.store.control.pause(id_, user, request, world.now),
    ),
    "resume": (
        "training_resumed",
        lambda world, id_, user, request: world.store.control.resume(id_, user, request, world.now),
    ),
    "configure": (
        "config_updated",
        lambda world, id_, user, request: world.store.control.update_config(
            id_, user, {"rate": 0.5}, {}, request, world.now
        ),
    ),
}

# The state of the training and of its round after a change, or the reason of its error; in the order of CHANGES.
NOT_RUNNING, NOT_FOUND = "TRAINING_NOT_RUNNING", "TRAINING_NOT_FOUND"
PAUSED, NOT_PAUSED = "TRAINING_PAUSED", "TRAINING_NOT_PAUSED"
OPEN, CLOSED, ABANDONED = "ONGOING OPEN", "ONGOING AGGREGATING", "COMPLETED ABANDONED"
TABLE: list[tuple[Callable[[World], Awaitable[Made]], list[str]]] = [
    (created, [NOT_RUNNING, NOT_RUNNING, NOT_RUNNING, NOT_RUNNING, "INITIAL"]),
    (pending, ["COMPLETED", "COMPLETED", "ONGOING PENDING", NOT_PAUSED, "ONGOING PENDING"]),
    (running, [OPEN, ABANDONED, OPEN, NOT_PAUSED, OPEN]),
    (aggregating, [CLOSED, CLOSED, CLOSED, NOT_PAUSED, CLOSED]),
    (evaluating, [OPEN, ABANDONED, OPEN, NOT_PAUSED, OPEN]),
    (collecting, ["SWAG_ROUND OPEN", ABANDONED, "SWAG_ROUND OPEN", NOT_PAUSED, "SWAG_ROUND OPEN"]),
    (paused, [OPEN, ABANDONED, PAUSED, OPEN, OPEN]),
    (paused_while_pending, ["COMPLETED", "COMPLETED", PAUSED, "ONGOING PENDING", "ONGOING PENDING"]),
    (paused_between_rounds, ["COMPLETED DONE", "COMPLETED DONE", PAUSED, OPEN, "ONGOING DONE"]),
    (stopping, [OPEN, ABANDONED, OPEN, NOT_PAUSED, OPEN]),
    (completed, [NOT_RUNNING, NOT_RUNNING, NOT_RUNNING, NOT_RUNNING, NOT_RUNNING]),
    (failed, [NOT_RUNNING, NOT_RUNNING, NOT_RUNNING, NOT_RUNNING, NOT_RUNNING]),
    (removed, [NOT_FOUND, NOT_FOUND, NOT_FOUND, NOT_FOUND, NOT_FOUND]),
]


@pytest.mark.parametrize(("make", "expected"), TABLE, ids=[make.__name__ for make, _ in TABLE])
async def test_a_change_in_a_state(
    store: Store, world: World, make: Callable[[World], Awaitable[Made]], expected: list[str]
) -> None:
    """Only the actor makes it, once for each request; it is in the audit log; what is rejected changes nothing."""
    for (action, change), outcome in zip(CHANGES.values(), expected, strict=True):
        actor, users, training = await make(world)
        before = await seen(store, training, actor)
        entries = await count(store, training, action)
        other = await world.user(Role.ACTOR)
        for user, reasons in ((users[0], {"NOT_ACTOR", NOT_FOUND}), (other, {NOT_FOUND})):
            assert await tried(world, training, user, change, new_id()) in reasons
        assert (await seen(store, training, actor), await count(store, training, action)) == (before, entries)
        request = new_id()
        answers = [await tried(world, training, actor, change, request) for _ in range(2)]
        assert answers[0] == answers[1]
        if outcome in (NOT_RUNNING, NOT_FOUND, PAUSED, NOT_PAUSED):
            assert answers[0] == outcome
            assert (await seen(store, training, actor), await count(store, training, action)) == (before, entries)
        else:
            current = await store.rounds.current(training.training_id)
            states = await store.trainings.get(training.training_id, actor)
            assert " ".join([states.state.value, *([current.state.value] if current else [])]) == outcome
            assert await count(store, training, action) == entries + 1
    await check(store)


async def tried(world: World, training: Training, user: str, change: Change, request: str) -> object:
    """What a change answers: the training, or the reason of the error."""
    try:
        return await change(world, training.training_id, user, request)
    except FedroundError as error:
        return error.reason


async def seen(store: Store, training: Training, actor: str) -> object:
    """The training as its actor sees it; the reason of the error, if it was removed."""
    try:
        return await store.trainings.get(training.training_id, actor)
    except FedroundError as error:
        return error.reason


async def count(store: Store, training: Training, action: str) -> int:
    """How many entries of an action the audit log has of the training."""
    return sum((one.training_id, one.action) == (training.training_id, action) for one in await chained(store))
