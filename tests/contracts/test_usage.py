"""What the database holds, for those who operate the server, on both databases."""

from contracts.world import SPEC, World
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import TrainingState
from fedround_server.store import Store


async def test_trainings_and_rounds_are_counted_by_state(store: Store, world: World, database: str) -> None:
    empty = await store.server.usage()
    assert empty.kind == ("postgresql" if database else "sqlite")
    assert empty.size_bytes > 10_000
    assert set(empty.trainings) == set(TrainingState)
    assert sum(empty.trainings.values()) == 0
    assert set(empty.rounds.values()) == {(0, None)}

    actor, _, training = await world.running(2)
    await world.create(actor, SPEC)
    removed = await world.create(actor, SPEC)
    await store.trainings.remove(removed.training_id, actor, force=False, now=world.now)
    found = await store.server.usage()
    assert {state: count for state, count in found.trainings.items() if count} == {
        TrainingState.ONGOING: 1,
        TrainingState.INITIAL: 1,
    }
    current = await store.rounds.current(training.training_id)
    assert current is not None
    assert found.rounds == {
        RoundState.OPEN: (1, current.open_time),
        RoundState.AGGREGATING: (0, None),
        RoundState.PENDING: (0, None),
    }
