"""What viewers read of the store, and rounds in pages and summaries; on both databases."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import peewee
import pytest

from contracts.world import SPEC, World, new_id, new_model
from fedround_server.domain.errors import ModelNotFound, TrainingNotFound, UnknownClients
from fedround_server.domain.limits import Quotas
from fedround_server.domain.rounds.round import MemberOrder, MemberPage, RoundState, RoundView
from fedround_server.domain.user import Role
from fedround_server.store import Store


@contextmanager
def counting(patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collects the statements of verbs."""
    found: list[str] = []
    execute = peewee.Database.execute_sql

    def counted(database: peewee.Database, sql: str, *more: object) -> object:
        if not sql.startswith(("BEGIN", "SET", "EXPLAIN", "SAVEPOINT", "RELEASE")):
            found.append(sql)
        return execute(database, sql, *more)

    with patch.context() as patched:
        patched.setattr(peewee.Database, "execute_sql", counted)
        yield found


async def test_all_trainings_in_pages(store: Store, world: World) -> None:
    actors = [await world.user(Role.ACTOR, name) for name in ("ada", "grace")]
    made = [(await world.training(actors[number % 2], [])).training_id for number in range(5)]
    await store.trainings.remove(made[2], actors[0], force=False, now=world.now)
    found, before = [], None
    while page := await store.viewers.page_trainings(before, 2):
        found += page
        before = page[-1].create_time, page[-1].training_id
    assert [one.training_id for one in found] == [made[4], made[3], made[1], made[0]]
    assert [one.actor_name for one in found] == ["ada", "grace", "grace", "ada"]


async def test_trainings_of_one_instant_are_on_one_page_each(store: Store, world: World) -> None:
    actor, now = await world.user(Role.ACTOR), world.now
    ids = sorted((new_id() for _ in range(4)), reverse=True)
    for training_id in ids:
        await store.trainings.create(training_id, actor, SPEC, new_model(), new_id(), Quotas(1000), now)
    first = await store.viewers.page_trainings(None, 3)
    rest = await store.viewers.page_trainings((now, first[-1].training_id), 3)
    assert [one.training_id for one in [*first, *rest]] == ids


async def test_the_name_of_an_actor_that_was_removed(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1, target_num_updates=1)
    name = (await store.users.get(actor)).name
    await world.submit(training.training_id, 0, client)
    await world.commit(training.training_id)
    await store.users.remove(actor, world.now)
    assert [one.actor_name for one in await store.viewers.page_trainings(None, 9)] == [name]


async def test_the_number_of_statements_does_not_depend_on_the_number_of_trainings(
    store: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = set()
    for _ in range(3):
        await world.running(1)
        with counting(monkeypatch) as statements:
            await store.viewers.page_trainings(None, 9)
        sizes.add(len(statements))
    assert len(sizes) == 1


async def test_models_of_trainings_only(store: Store, world: World) -> None:
    actor = await world.user(Role.ACTOR)
    unused = await store.models.create(new_id(), actor, new_model(), Quotas(1000), world.now)
    training = await world.training(actor, [])
    assert await store.viewers.owner_of(training.model_id) == actor
    assert await store.viewers.actor_of(training.training_id) == actor
    await store.trainings.remove(training.training_id, actor, force=False, now=world.now)
    for model_id in (unused.model_id, training.model_id, new_id()):
        with pytest.raises(ModelNotFound):
            await store.viewers.owner_of(model_id)
    with pytest.raises(TrainingNotFound):
        await store.viewers.actor_of(new_id())


async def test_views_are_those_of_actors(store: Store, world: World) -> None:
    running = {training.training_id: actor for actor, _, training in [await world.running(1) for _ in range(3)]}
    gone = next(iter(running))
    await store.trainings.remove(gone, running[gone], force=True, now=world.now)
    found = await store.viewers.open_views()
    assert {view.training_id: actor for actor, view in found} == {
        training_id: actor for training_id, actor in running.items() if training_id != gone
    }
    for training_id, actor in running.items():
        assert await store.viewers.views([training_id]) == [(actor, *await store.events.views(actor, [training_id]))]
    with pytest.raises(TrainingNotFound):
        await store.viewers.views([gone, new_id()])


async def test_a_viewer_takes_part_in_no_training(store: Store, world: World) -> None:
    actor, viewer = await world.user(Role.ACTOR), await world.user(Role.VIEWER)
    (client,) = await world.users(1)
    with pytest.raises(UnknownClients, match=viewer):
        await world.training(actor, [client, viewer])
    training = await world.training(actor, [])
    with pytest.raises(UnknownClients, match=viewer):
        await store.trainings.register(training.training_id, actor, [client, viewer], world.now)
    assert (await store.trainings.get(training.training_id, actor)).participant_ids == ()


async def pages(store: Store, training_id: str, actor: str, limit: int, as_of: datetime) -> list[RoundView]:
    """All pages of the current round."""
    found, after = [], None
    while True:
        view = await store.rounds.explain(training_id, 0, actor, MemberPage(limit, after, as_of))
        found.append(view)
        if len(view.members) <= limit:
            return found
        after = view.members[limit - 1].order, view.members[limit - 1].name


async def test_members_in_pages(store: Store, world: World) -> None:
    actor, clients, training = await world.running(7)
    training_id = training.training_id
    await world.submit(training_id, 0, clients[0])
    await world.submit(training_id, 0, clients[1])
    await store.submissions.report_failure(training_id, 0, clients[2], "OUT_OF_MEMORY", "", world.now)
    found = await pages(store, training_id, actor, 2, world.now)
    members = [one for view in found for one in view.members[:2]]
    assert len(found) == 4
    order = [(one.failure is None, one.arrive_time is not None, one.name) for one in members]
    assert order == sorted(order)
    assert {one.user_id for one in members} == set(clients)
    assert [one.user_id for one in members if one.failure is not None] == [clients[2]]
    # What depends on all members is on the first page.
    assert [len(view.times) for view in found] == [7, 0, 0, 0]
    whole = await store.rounds.explain(training_id, 0, actor)
    assert [one.user_id for one in whole.members] == [one.user_id for one in members]


async def test_a_member_that_submits_or_fails_between_two_pages_is_on_one(store: Store, world: World) -> None:
    actor, _, training = await world.running(6)
    training_id, as_of = training.training_id, world.now
    first = await store.rounds.explain(training_id, 0, actor, MemberPage(2, None, as_of))
    names = [one.name for one in first.members[:2]]
    later = [one for one in (await store.rounds.explain(training_id, 0, actor)).members if one.name not in names]
    await world.submit(training_id, 0, later[0].user_id)
    await store.submissions.report_failure(training_id, 0, later[1].user_id, "OUT_OF_MEMORY", "", world.now)
    rest = await store.rounds.explain(training_id, 0, actor, MemberPage(9, (MemberOrder.MISSING, names[-1]), as_of))
    assert [one.user_id for one in rest.members] == [one.user_id for one in later]
    assert rest.members[0].arrive_time is not None
    assert rest.members[1].failure is not None


async def test_a_summary_takes_as_many_statements_for_a_large_cohort(
    store: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = set()
    for count in (2, 40):
        actor, clients, training = await world.running(count)
        await world.submit(training.training_id, 0, clients[0])
        with counting(monkeypatch) as statements:
            view = await store.rounds.summarize(training.training_id, None, actor)
        assert (view.round.members, view.round.arrived, view.members, view.times) == (count, 1, (), ())
        with counting(monkeypatch) as more:
            await store.rounds.explain(training.training_id, None, actor, MemberPage(2))
        sizes.add((len(statements), len(more)))
    assert len(sizes) == 1


async def test_the_rounds_of_a_training(store: Store, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    actor, clients, training = await world.running(2, target_num_updates=3)
    training_id, sizes = training.training_id, set()
    for number in range(3):
        for client in clients:
            await world.submit(training_id, number, client)
        with counting(monkeypatch) as statements:
            found = await store.rounds.page(training_id, actor, None, 9)
        sizes.add(len(statements))
        assert [view.round.number for view in found] == list(range(number, -1, -1))
        assert found[0] == await store.rounds.summarize(training_id, None, actor)
        await world.commit(training_id)
    assert len(sizes) == 1
    assert [one.round.number for one in await store.rounds.page(training_id, actor, None, 2)] == [2, 1]
    assert [one.round.number for one in await store.rounds.page(training_id, actor, 1, 2)] == [0]
    assert {one.round.state for one in await store.rounds.page(training_id, actor, None, 9)} == {RoundState.DONE}
    unstarted = await world.training(actor, clients)
    assert await store.rounds.page(unstarted.training_id, actor, None, 9) == []
