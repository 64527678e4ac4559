"""What a call costs does not grow with what was before: counted in statements and in steps of SQLite, never timed."""

from collections.abc import Awaitable, Callable
from typing import Any

import peewee
import pytest

from contracts.world import World, new_id, update
from fedround_server.domain.training import Training
from fedround_server.store import Store
from fedround_server.store.tables.base import database_proxy
from fedround_server.store.tables.schema import TrainingRow

TARGET = 100
PAGE = 2
Costs = dict[str, tuple[int, int]]


class Meter:
    """Counts what verbs ask of the database."""

    def __init__(self, store: Store, patch: pytest.MonkeyPatch) -> None:
        self._database = store._database
        self._statements = 0
        self._steps = 0
        execute = peewee.Database.execute_sql

        def counted(database: peewee.Database, sql: str, params: Any = None, *more: Any) -> Any:
            self._statements += 1
            return execute(database, sql, params, *more)

        patch.setattr(peewee.Database, "execute_sql", counted)

    async def cost(self, call: Awaitable[Any]) -> tuple[int, int]:
        """Statements that a call takes, and steps of SQLite's machine, which makes some for each row that it reads."""
        await self._database.run(lambda: self._listen(self._step))
        self._statements = self._steps = 0
        await call
        found = self._statements, self._steps
        await self._database.run(lambda: self._listen(None))
        return found

    def _listen(self, step: Callable[[], int] | None) -> None:
        if not self._database.is_postgres:
            database_proxy.obj.connection().set_progress_handler(step, 1)

    def _step(self) -> int:
        self._steps += 1
        return 0


@pytest.fixture
def meter(store: Store, wasteful: list[str], monkeypatch: pytest.MonkeyPatch) -> Meter:
    """Behind `wasteful`, whose plans are not part of the cost."""
    return Meter(store, monkeypatch)


async def play(world: World, clients: int, rounds: int) -> tuple[str, list[str], Training]:
    """A training after so many rounds, whose open round waits for every participant."""
    actor, users, training = await world.running(clients, target_num_updates=TARGET, keep_versions=PAGE)
    for number in range(rounds):
        for user in users:
            await world.submit(training.training_id, number, user)
        assert await world.commit(training.training_id)
    return actor, users, training


async def wake_up(meter: Meter, world: World, user: str, training: Training) -> tuple[int, int]:
    """The cost of receiving the start of a round."""
    events = world.store.events
    (view,) = await events.views(user, [training.training_id])
    return await meter.cost(events.poll(training.training_id, user, view.last_sequence - 1, 100))


async def costs_of_a_participant(meter: Meter, world: World, user: str, training: Training, number: int) -> Costs:
    """What the calls of a participant cost in an open round, in turn."""
    store, training_id = world.store, training.training_id
    (view,) = await store.events.views(user, [training_id])
    return {
        "snapshot": await meter.cost(store.events.poll(training_id, user, None, 1)),
        "admission": await meter.cost(store.submissions.admit(update(training_id, number, user))),
        "submission": await meter.cost(world.submit(training_id, number, user)),
        "view": await meter.cost(store.events.views(user, [training_id])),
        "training": await meter.cost(store.trainings.get(training_id, user)),
        "trainings": await meter.cost(store.trainings.page(user, as_actor=False, before=None, limit=PAGE)),
        "current round": await meter.cost(store.rounds.current(training_id)),
        # An update is reported to its actor only.
        "wake-up for nothing": await meter.cost(store.events.poll(training_id, user, view.last_sequence, 100)),
    }


def same(costs: Costs) -> dict[str, Any]:
    """What equals these costs: as many statements, and about as many steps.

    Random ids are found after a few steps more or less; work for each round or participant would be 20 steps and more.
    """
    return {name: (statements, pytest.approx(steps, abs=8)) for name, (statements, steps) in costs.items()}


async def test_calls_cost_the_same_however_many_rounds_came_before(world: World, meter: Meter) -> None:
    found = []
    for rounds in (4, 24):
        actor, users, training = await play(world, 2, rounds)
        wake = await wake_up(meter, world, users[0], training)
        costs = {"wake-up": wake, **await costs_of_a_participant(meter, world, users[0], training, rounds)}
        store, model_id = world.store, training.model_id
        for user in (actor, users[0]):
            who = "actor's" if user == actor else "participant's"
            costs[f"{who} versions"] = await meter.cost(store.models.page_versions(model_id, user, None, PAGE))
            costs[f"{who} metrics"] = await meter.cost(store.models.metrics(model_id, user, (0, ""), PAGE))
        costs["trainings of the actor"] = await meter.cost(
            store.trainings.page(actor, as_actor=True, before=None, limit=PAGE)
        )
        costs["last submission"] = await meter.cost(world.submit(training.training_id, rounds, users[1]))
        costs["commit"] = await meter.cost(world.commit(training.training_id))
        found.append(costs)
    assert found[1] == same(found[0])


async def test_calls_cost_the_same_however_many_take_part(world: World, meter: Meter) -> None:
    found = []
    for clients in (2, 40):
        _, users, training = await play(world, clients, 0)
        wake = await wake_up(meter, world, users[0], training)
        for user in users[1:-1]:
            await world.submit(training.training_id, 0, user)
        found.append({"wake-up": wake, **await costs_of_a_participant(meter, world, users[0], training, 0)})
    # The snapshot is looked for from the end of the log.
    assert found[1].pop("snapshot")[0] == found[0].pop("snapshot")[0]
    assert found[1] == same(found[0])


async def test_a_commit_costs_so_much_an_update(world: World, meter: Meter) -> None:
    steps = []
    for clients in (2, 22, 42):
        _, users, training = await play(world, clients, 0)
        for user in users:
            await world.submit(training.training_id, 0, user)
        steps.append((await meter.cost(world.commit(training.training_id)))[1])
    few, more, most = steps
    assert most - more == pytest.approx(more - few, rel=0.1)


async def test_a_training_without_options_pays_nothing_for_them(world: World, meter: Meter) -> None:
    actor, users, training = await play(world, 2, 1)
    store, new = world.store, update(training.training_id, 1, users[0])
    statements = {
        "admission": await meter.cost(store.submissions.admit(new)),
        "submission": await meter.cost(store.submissions.submit_update(new_id(), new, world.now)),
        "repetition": await meter.cost(store.submissions.submit_update(new_id(), new, world.now)),
        "training": await meter.cost(store.trainings.get(training.training_id, actor)),
    }
    is_postgres = store._database.is_postgres
    # Without a look for base versions, shadows or budgets.
    assert {name: count for name, (count, _) in statements.items()} == {
        # On PostgreSQL, a snapshot says first that it is one.
        "admission": 5 + is_postgres,
        # There, one alone is run as several are, since others may come while it waits for its lock.
        "submission": 11 - is_postgres,
        "repetition": 4 + 3 * is_postgres,
        # One of them reads the name of the actor.
        "training": 7 + is_postgres,
    }


async def test_what_is_written_at_each_update_does_not_grow_with_the_clients(world: World, meter: Meter) -> None:
    sizes = []
    for clients in (2, 40):
        actor, users, training = await play(world, clients, 0)
        row = await world.store._database.run(lambda id_=training.training_id: TrainingRow.get_by_id(id_))
        sizes.append(len(str(row.spec)))
        assert set((await world.store.trainings.get(training.training_id, actor)).spec.client_ids) == set(users)
    assert sizes[0] == sizes[1]


async def test_rounds_and_trainings_know_how_many_there_are(world: World) -> None:
    actor, users, training = await play(world, 4, 0)
    newcomer, training_id = await world.user(), training.training_id
    store = world.store
    await world.submit(training_id, 0, users[0])
    await world.submit(training_id, 0, users[1])

    async def counts() -> tuple[int, int, int]:
        found = await store.trainings.get(training_id, actor)
        assert found.num_participants == len(found.participant_ids)
        return found.num_participants, found.updates_arrived, found.updates_expected

    assert await counts() == (4, 2, 4)
    await store.trainings.register(training_id, actor, [newcomer, users[0]], world.now)
    assert await counts() == (5, 2, 4)
    await store.trainings.remove_clients(training_id, actor, [users[0], newcomer], world.now)
    assert await counts() == (3, 1, 3)
    await store.trainings.register(training_id, actor, [users[0]], world.now)
    assert await counts() == (4, 1, 3)
    _, closed = await store.trainings.remove_clients(training_id, actor, users[2:], world.now)
    assert (closed, await counts()) == (True, (2, 1, 1))
    assert await world.commit(training_id)
    assert await counts() == (2, 0, 2)
