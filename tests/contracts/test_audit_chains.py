"""The audit chains of trainings: whose changes wait for each other, what the head covers, and what is found."""

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from peewee import IntegrityError

from calls import until
from contracts.audits import chained, check, read_log, recorded, tamper
from contracts.world import World, new_id
from fedround_client import AuditBroken, AuditHead
from fedround_client.audit_chain import verify
from fedround_server.domain.audit import AuditHead as Head
from fedround_server.domain.audit import AuditRecord
from fedround_server.domain.training import Evaluation, Goal, Selection
from fedround_server.domain.user import Role
from fedround_server.store import Store
from fedround_server.store.db import group_commit
from fedround_server.store.db.audit_trail import append
from fedround_server.store.queries.audit import find_last_time
from fedround_server.store.tables.audit_schema import AuditHeadRow, AuditRow
from fedround_server.store.tables.base import database_proxy


async def change(store: Store, *chains: str, name: str = "change") -> None:
    """Changes trainings, and what concerns none, in one transaction."""
    await store._database.run(lambda: [append(AuditRecord("tested", chain)) for chain in chains], name)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Holds the change called "held" before its commit: set once it is there, and to be set for it to go on."""
    there, go_on = threading.Event(), threading.Event()
    reached = group_commit.reached

    def hold(point: str) -> None:
        reached(point)
        if point == "held.written":
            there.set()
            assert go_on.wait(60)

    monkeypatch.setattr(group_commit, "reached", hold)
    return there, go_on


def waiting_for_locks() -> int:
    with database_proxy.obj.connection_context():
        found = database_proxy.obj.execute_sql("SELECT COUNT(*) FROM pg_locks WHERE NOT granted").fetchone()
    return int(found[0])


async def test_only_changes_of_the_same_training_wait_for_each_other(
    store: Store, world: World, held: tuple[threading.Event, threading.Event]
) -> None:
    if not store._database.is_postgres:
        pytest.skip("SQLite has a single writer")
    there, go_on = held
    _, (one, _), first = await world.running(2)
    _, (other, _), second = await world.running(2)
    holding = asyncio.create_task(change(store, first.training_id, name="held"))
    await asyncio.to_thread(there.wait, 60)
    # Neither another training nor the server waits for the transaction that holds the head of the first training.
    await world.submit(second.training_id, 0, other)
    await world.user()
    waits = asyncio.create_task(world.submit(first.training_id, 0, one))
    await asyncio.to_thread(until, waiting_for_locks)
    assert not waits.done()
    assert not holding.done()
    go_on.set()
    await asyncio.gather(holding, waits)
    actions = [entry.action for entry in await chained(store) if entry.chain == first.training_id]
    assert actions[-2:] == ["tested", "update_accepted"]
    await check(store)


async def test_two_transactions_may_begin_the_same_chain(
    store: Store, held: tuple[threading.Event, threading.Event]
) -> None:
    if not store._database.is_postgres:
        pytest.skip("SQLite has a single writer")
    there, go_on = held
    chain = new_id()
    runs = []

    def verb() -> None:
        runs.append(chain)
        append(AuditRecord("tested", chain))

    holding = asyncio.create_task(change(store, chain, name="held"))
    await asyncio.to_thread(there.wait, 60)
    waits = asyncio.create_task(store._database.run(verb, "change"))
    await asyncio.to_thread(until, waiting_for_locks)
    go_on.set()
    await asyncio.gather(holding, waits)
    # A verb that fails by a key that was inserted meanwhile runs again once, and may fail by another one then.
    assert len(runs) == 1
    assert [entry.action for entry in await chained(store) if entry.chain == chain] == ["tested", "tested"]
    await check(store)


async def test_changes_of_several_trainings_never_wait_for_each_other_in_a_circle(store: Store, world: World) -> None:
    # The last ones have no chain yet, and two transactions may begin one at the same time.
    chains = ["", *[(await world.running(1))[2].training_id for _ in range(3)], *[new_id() for _ in range(20)]]
    draw = random.Random(1)
    await asyncio.gather(*(change(store, *draw.sample(chains, draw.randint(1, 4))) for _ in range(200)))
    report = await check(store)
    assert report.chains == len({entry.chain for entry in await chained(store)} - {""})


async def test_verbs_about_several_trainings_at_once_leave_whole_chains(store: Store, world: World) -> None:
    actors = [await world.user(Role.ACTOR) for _ in range(4)]
    shared = await world.users(6)
    own = {actor: await world.users(3) for actor in actors}
    trainings = []
    for actor in actors:
        made = await world.training(actor, [*shared, *own[actor]])
        await store.trainings.start(made.training_id, actor, None, world.now)
        trainings.append((made.training_id, actor))

    async def take_part(training_id: str, actor: str) -> None:
        for client in own[actor]:
            await world.submit(training_id, 0, client)
            await store.audit.record_heads()

    async def remove(user_id: str) -> None:
        await store.users.set_labels(user_id, {"leaves": "yes"})
        await store.users.remove(user_id, world.now, force=True)

    outcomes = await asyncio.gather(
        *(take_part(*training) for training in trainings[:3]),
        *(remove(user_id) for user_id in shared),
        *(world.running(2) for _ in range(3)),
        remove(actors[3]),
        return_exceptions=True,
    )
    assert [one for one in outcomes if isinstance(one, BaseException)] == []
    left = [(entry.chain, entry.subject) for entry in await chained(store) if entry.action == "client_removed"]
    expected = {(training_id, user_id) for training_id, _ in trainings[:3] for user_id in shared}
    assert expected <= set(left)
    assert len(left) == len(set(left))
    report = await check(store)
    assert (report.updates, report.chains) == (9, 7)


async def test_what_changes_a_training_alone_is_in_its_chain_alone(store: Store, world: World) -> None:
    spec: dict[str, Any] = {"metric_names": ("loss",), "evaluation": Evaluation.EVERY_ROUND}
    spec["selection"] = Selection("loss", Goal.MINIMIZE)
    actor, (one, two), training = await world.running(2, **spec)
    training_id, new = training.training_id, await world.user()
    head = await store.audit.head()
    await store.trainings.register(training_id, actor, [new], world.now)
    await store.trainings.remove_clients(training_id, actor, [new], world.now)
    for client in (one, two):
        await world.submit(training_id, 0, client)
    await world.commit(training_id, "made")
    for client in (one, two):
        await world.report(training_id, 1, client, 5, loss=1.0)
    # Its best version gets a tag.
    task = await store.rounds.find_aggregation(training_id)
    assert task is not None
    assert await store.rounds.commit(training_id, 1, task.round.epoch, None, world.now)
    await store.trainings.remove(training_id, actor, force=True, now=world.now)
    assert len(await recorded(store, "version_tagged")) == 1
    assert await store.audit.head() == head
    assert {entry.chain for entry in await chained(store) if entry.training_id and entry.action != "chain_begun"} == {
        training_id
    }
    await check(store)


async def test_a_head_covers_what_was_written_before(store: Store, world: World) -> None:
    _, (client, _), first = await world.running(2)
    _, _, second = await world.running(2)
    assert (await check(store)).uncovered == 8
    await store.audit.record_heads()
    report = await check(store)
    assert (report.uncovered, report.chains) == (0, 2)
    before = await store.audit.head()
    await store.audit.record_heads()
    assert await store.audit.head() == before
    await world.submit(first.training_id, 0, client)
    assert (await check(store)).uncovered == 1
    await store.audit.record_heads()
    assert [set(one["heads"]) for one in await recorded(store, "heads_recorded")] == [
        {first.training_id, second.training_id},
        {first.training_id},
    ]
    assert (await check(store, report.head)).uncovered == 0


async def test_the_last_time_is_that_of_any_chain(store: Store, world: World) -> None:
    assert await store._database.run(find_last_time) is None
    _, (client, _), training = await world.running(2)
    await world.submit(training.training_id, 0, client)
    last = (await chained(store))[-1]
    found = await store._database.run(find_last_time)
    assert found is not None
    assert round(found.timestamp() * 1_000_000) == last.time_us


async def test_pages_of_any_size_are_the_whole_log(store: Store, world: World) -> None:
    for _ in range(3):
        await world.running(2)
    head = await store.audit.head()
    whole = (await store.audit.read_on("", 0, head.sequence, 1000)).items
    assert sum(isinstance(item, Head) for item in whole) == 3
    for limit in (1, 2, 3, 4, 5, 12):
        items: list[Any] = []
        position: tuple[str, int] | None = ("", 0)
        while position is not None:
            page = await store.audit.read_on(*position, head.sequence, limit)
            items += page.items
            position = page.next
        assert items == whole
    last = whole[-1]
    # One who goes on behind the last entry of a chain gets its head once more.
    assert (await store.audit.read_on(last.chain, last.sequence, head.sequence, 10)).items == [last]


async def test_chains_that_their_reader_does_not_know_are_left_out(store: Store, world: World) -> None:
    _, (client, _), first = await world.running(2)
    head = await store.audit.head()
    _, _, second = await world.running(2)
    await world.submit(first.training_id, 0, client)
    for limit in (1, 2, 100):
        chains, position = set(), ("", 0)
        while position is not None:
            page = await store.audit.read_on(*position, head.sequence, limit)
            chains |= {item.chain for item in page.items}
            position = page.next  # type: ignore[assignment]
        assert chains == {first.training_id}
    known = (await store.audit.read_on("", 0, 1 << 62, 100)).items
    assert {item.chain for item in known} == {first.training_id, second.training_id}


def cut_off(chain: str, sequence: int) -> None:
    """Cuts off what follows an entry, with the head."""
    AuditRow.delete().where(AuditRow.chain == chain, AuditRow.sequence > sequence).execute()
    row = AuditRow.get(AuditRow.chain == chain, AuditRow.sequence == sequence)
    AuditHeadRow.update(sequence=sequence, hash=row.hash).where(AuditHeadRow.chain == chain).execute()


def remove(chain: str) -> None:
    """Removes a chain with its head."""
    AuditRow.delete().where(AuditRow.chain == chain).execute()
    AuditHeadRow.delete().where(AuditHeadRow.chain == chain).execute()


def forge(chain: str) -> None:
    """Adds a chain that the server's does not have, as a copy of another one."""
    name = new_id()
    for row in AuditRow.select().where(AuditRow.chain == chain):
        row.chain = name
        row.save(force_insert=True)


TAMPERING: dict[str, tuple[int, str, Callable[[str], object]]] = {
    "the whole chain": (1, "is missing, with the whole chain", remove),
    "the whole chain but its head": (
        1,
        "is missing, with the whole chain",
        lambda chain: AuditRow.delete().where(AuditRow.chain == chain).execute(),
    ),
    "the head": (
        5,
        "may be missing: there is no head",
        lambda chain: AuditHeadRow.delete().where(AuditHeadRow.chain == chain).execute(),
    ),
    "the end": (3, "is missing: the log was cut off, it had 4 entries before", lambda chain: cut_off(chain, 2)),
    "an entry": (
        2,
        "is missing: the next entry is 3",
        lambda chain: AuditRow.delete().where(AuditRow.chain == chain, AuditRow.sequence == 2).execute(),
    ),
    "the place of an entry": (
        4,
        "is missing: the next entry is 9",
        lambda chain: AuditRow.update(sequence=9).where(AuditRow.chain == chain, AuditRow.sequence == 4).execute(),
    ),
}


@pytest.mark.parametrize("kind", sorted(TAMPERING))
async def test_what_is_done_to_the_chain_of_a_training_is_found(store: Store, world: World, kind: str) -> None:
    _, _, training = await world.running(2)
    await world.running(2)
    await store.audit.record_heads()
    await check(store)
    sequence, problem, work = TAMPERING[kind]
    await tamper(store, lambda: work(training.training_id))
    with pytest.raises(AuditBroken) as broken:
        await check(store)
    assert (broken.value.chain, broken.value.sequence) == (training.training_id, sequence)
    assert problem in broken.value.problem


async def test_a_chain_that_was_added_is_found(store: Store, world: World) -> None:
    _, _, training = await world.running(2)
    await tamper(store, lambda: forge(training.training_id))
    with pytest.raises(AuditBroken, match="the server's chain does not have its chain"):
        await check(store)


async def test_a_chain_that_lost_its_head_is_not_continued(store: Store, world: World) -> None:
    _, (client, _), training = await world.running(2)
    chain = training.training_id
    await tamper(store, lambda: AuditHeadRow.delete().where(AuditHeadRow.chain == chain).execute())
    with pytest.raises(IntegrityError):
        await world.submit(chain, 0, client)


async def test_a_training_that_was_cut_off_and_goes_on_is_found_with_a_head_only(store: Store, world: World) -> None:
    _, (client, _), training = await world.running(2)
    await world.submit(training.training_id, 0, client)
    log = await read_log(store)
    saved = log[-1]
    assert isinstance(saved, AuditHead)
    await tamper(store, lambda: cut_off(training.training_id, 4))
    await change(store, training.training_id)
    await check(store)
    with pytest.raises(AuditBroken, match=r"entry 5 of the training .*: has another hash than the head"):
        await check(store, saved)
    assert verify(log, saved).chains == 1
