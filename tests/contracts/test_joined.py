"""Submissions that are accepted together: all is as if they had come one after the other; on both databases."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import peewee
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregations import FED_AVG
from contracts.audits import chain_of, check
from contracts.test_growth import Meter
from contracts.world import World, new_id, update
from fedround_server.aggregators.buffering import FedBuff
from fedround_server.domain.audit import AuditRecord, acting
from fedround_server.domain.errors import StoreUnavailable
from fedround_server.domain.policy import RoundPolicy
from fedround_server.domain.report import NewReport
from fedround_server.domain.training import Evaluation, Training
from fedround_server.domain.update import NewUpdate, Update
from fedround_server.store import Store
from fedround_server.store.db.connection import POSTGRES_THREADS
from fedround_server.store.db.group_commit import Attempt, Transactions
from fedround_server.store.tables.schema import CohortRow, EventRow, RoundRow, TrainingRow, UpdateRow
from fedround_server.store.verbs import submission
from sizes import examples

CLIENTS = 6
POLICIES = (
    RoundPolicy(),
    RoundPolicy(min_updates=3),
    RoundPolicy(min_updates=2, wait_after_min=timedelta(seconds=3)),
    RoundPolicy(min_updates=2, wait_fraction=0.5),
)


@dataclass(frozen=True)
class Submit:
    """By whom (the last two are no members), to this or a later round, of what, and whether its values are valid."""

    user: int
    content: str = "a"
    later: int = 0
    is_report: bool = False
    is_valid: bool = True


@dataclass(frozen=True)
class Past:
    """What was before: who has submitted, who has failed, who was removed, in this order; and the training's rules.

    Attributes:
        evaluates: Whether the open round is an evaluation round.
    """

    policy: RoundPolicy = POLICIES[0]
    submitted: frozenset[int] = frozenset()
    failed: frozenset[int] = frozenset()
    removed: frozenset[int] = frozenset()
    is_buffered: bool = False
    evaluates: bool = False


few = st.frozensets(st.integers(0, CLIENTS - 1), max_size=2)
pasts = st.builds(Past, st.sampled_from(POLICIES), few, few, few, st.booleans(), st.booleans())
extras = st.builds(
    Submit,
    st.integers(0, CLIENTS + 1),
    st.sampled_from("ab"),
    st.sampled_from([0, 0, 1]),
    st.sampled_from([False, False, True]),
    st.booleans(),
)


@st.composite
def several(draw: st.DrawFn, *, is_report: bool) -> list[Submit]:
    """One submission of each member, most of them alike, with others between them."""
    found = [Submit(user, is_report=is_report) for user in draw(st.permutations(range(CLIENTS)))]
    for one in draw(st.lists(extras, max_size=4)):
        found.insert(draw(st.integers(0, len(found))), one)
    return found


async def begin(world: World, past: Past, actor: str, users: Sequence[str]) -> Training:
    store = world.store
    aggregation = replace(FED_AVG, buffering=FedBuff(size=3, max_staleness=2)) if past.is_buffered else FED_AVG
    made = await world.training(
        actor,
        list(users[:CLIENTS]),
        round_policy=past.policy,
        target_num_updates=9,
        aggregation=aggregation,
        metric_names=("loss",),
        evaluation=Evaluation.EVERY_ROUND if past.evaluates else Evaluation.NEVER,
    )
    training = await store.trainings.start(made.training_id, actor, None, world.now)
    if past.evaluates:
        for user in users[:CLIENTS]:
            await attempt(world.submit(training.training_id, 0, user))
        await world.commit(training.training_id)
        training = await store.trainings.get(training.training_id, actor)
    for one in sorted(past.submitted):
        await attempt(submit(world, training, users, Submit(one, is_report=past.evaluates)))
    for one in sorted(past.failed):
        await attempt(
            store.submissions.report_failure(training.training_id, training.round, users[one], "OOM", "", world.now)
        )
    for one in sorted(past.removed):
        await attempt(store.trainings.remove_clients(training.training_id, actor, [users[one]], world.now))
    return training


async def attempt(call: Awaitable[Any]) -> Any:
    """What a call returns, or its error."""
    try:
        return await call
    except Exception as error:
        return error


def submit(
    world: World, training: Training, users: Sequence[str], one: Submit, ids: list[str] | None = None
) -> Awaitable[Any]:
    """The call, made by its user; its id is added to `ids`."""
    training_id, number = training.training_id, training.round + one.later
    user, submission_id = users[one.user], new_id()
    if ids is not None:
        ids.append(submission_id)
    new: NewUpdate | NewReport = update(training_id, number, user, one.content, 10 if one.is_valid else 1 << 40)
    if one.is_report:
        new = NewReport(training_id, number, user, new.num_examples, {"loss": float(len(one.content))})
    verb: Any = world.store.submissions.submit_report if one.is_report else world.store.submissions.submit_update
    context, now = copy_context(), world.now
    context.run(acting.set, user)
    return asyncio.get_running_loop().create_task(verb(submission_id, new, now), context=context)


@contextmanager
def halted(store: Store) -> Iterator[threading.Event]:
    """Has calls wait until the event is set, and one thread run all of them then."""
    go_on, end = threading.Event(), threading.Event()
    begun = threading.Semaphore(0)

    def occupy(until: threading.Event) -> None:
        begun.release()
        until.wait()

    threads = POSTGRES_THREADS if store._database.is_postgres else 1
    for number in range(threads):
        store._database._executor.submit(occupy, end if number else go_on)
    for _ in range(threads):
        begun.acquire()
    try:
        yield go_on
    finally:
        go_on.set()
        end.set()


async def together(
    world: World, training: Training, users: Sequence[str], submitted: Iterable[Submit], ids: list[str] | None = None
) -> list[Any]:
    """What comes of submissions that wait at the same time, in their order."""
    with halted(world.store) as go_on:
        calls = [submit(world, training, users, one, ids) for one in submitted]
        await asyncio.sleep(0)
        go_on.set()
        return await asyncio.gather(*map(attempt, calls))


def plain(value: Any, names: dict[str, str]) -> Any:
    """The value with names in place of ids."""
    text = json.dumps(value, default=str, sort_keys=True)
    for one, name in names.items():
        text = text.replace(one, name)
    return json.loads(text)


async def traces_of(store: Store, training: Training, names: dict[str, str]) -> Any:
    """All that has been written about a training, with names in place of ids."""

    def read() -> Any:
        def rows(table: Any, *order: Any) -> list[dict[str, Any]]:
            return list(table.select().where(table.training_id == training.training_id).order_by(*order).dicts())

        return [
            rows(TrainingRow),
            rows(RoundRow, RoundRow.number),
            rows(CohortRow, CohortRow.number, CohortRow.user_id),
            rows(UpdateRow, UpdateRow.accept_time, UpdateRow.number),
            rows(EventRow, EventRow.sequence),
        ]

    entries = [
        [entry.user_id, entry.action, entry.subject, json.loads(entry.facts)]
        for entry in await chain_of(store, training.training_id)
    ]
    found = await store._database.run(read)
    return plain([found, entries], names)


def in_groups(submitted: Sequence[Submit]) -> list[Submit]:
    """In the order in which they are accepted: those that may be accepted together follow each other."""
    groups: dict[tuple[int, bool], list[Submit]] = {}
    for one in submitted:
        groups.setdefault((one.later, one.is_report), []).append(one)
    return [one for group in groups.values() for one in group]


@pytest.mark.attack
@given(past=pasts, data=st.data())
@examples(30, 60)
async def test_all_is_as_if_they_had_come_one_after_the_other(
    store: Store, world: World, past: Past, data: st.DataObject
) -> None:
    is_report = past.evaluates is data.draw(st.sampled_from([True, True, True, False]))
    await compare(store, world, past, data.draw(several(is_report=is_report)))


@pytest.mark.parametrize(
    ("past", "changed"),
    [
        (Past(), {}),
        (Past(), {"is_report": True}),
        (Past(), {"is_valid": False}),
        (Past(), {"later": 1}),
        (Past(evaluates=True), {"is_report": True}),
        (Past(evaluates=True), {}),
        *((Past(policy), {}) for policy in POLICIES),
        (Past(submitted=frozenset({2})), {}),
        (Past(failed=frozenset({2})), {}),
        (Past(removed=frozenset({2})), {}),
        (Past(is_buffered=True), {}),
    ],
)
async def test_all_is_the_same_for_members_that_do_the_same(
    store: Store, world: World, past: Past, changed: dict[str, Any]
) -> None:
    await compare(store, world, past, [Submit(user, **changed) for user in range(CLIENTS)])


async def compare(store: Store, world: World, past: Past, submitted: Sequence[Submit]) -> None:
    """Compares what comes of submissions to two trainings with the same past: one after the other, and together."""
    actor, users = await world.user(), await world.users(CLIENTS + 2)
    found = []
    submitted = in_groups(submitted)
    for grouped in (False, True):
        world._now = datetime(2027, 1, 1, tzinfo=UTC)
        training = await begin(world, past, actor, users)
        ids: list[str] = []
        if grouped:
            outcomes = await together(world, training, users, submitted, ids)
        else:
            outcomes = [await attempt(submit(world, training, users, one, ids)) for one in submitted]
        rows = await store._database.run(
            lambda training=training: list(UpdateRow.select().where(UpdateRow.training_id == training.training_id))
        )
        names = {training.training_id: "training", training.model_id: "model"}
        names |= {row.update_id: f"of {users.index(row.user_id)} in {row.number}" for row in rows}
        names |= {one: f"id {number}" for number, one in enumerate(ids) if one not in names}
        told = [
            [type(one).__name__, str(one)] if isinstance(one, Exception) else [str(one[0]), one[1]] for one in outcomes
        ]
        traces = await traces_of(store, training, names)
        found.append((plain(told, names), traces))
    (apart, rows_apart), (joined, rows_joined) = found
    assert joined == apart
    assert rows_joined == rows_apart
    await check(store)


async def test_newcomers_share_statements(store: Store, world: World, wasteful: list[str], monkeypatch: Any) -> None:
    meter = Meter(store, monkeypatch)
    counts = []
    for clients in (2, 20):
        _, users, training = await world.running(clients + 1)

        async def accept(users: Sequence[str] = users[1:], training: Training = training) -> None:
            with halted(store) as go_on:
                calls = [asyncio.ensure_future(world.submit(training.training_id, 0, user)) for user in users]
                await asyncio.sleep(0)
                go_on.set()
                await asyncio.gather(*calls)

        counts.append((await meter.cost(accept()))[0])
    assert counts == [10 + 2 * (not store._database.is_postgres)] * 2


async def test_each_is_logged_by_its_own_caller(world: World, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, list[str]]] = []

    def tell(records: Sequence[AuditRecord]) -> None:
        told.append((acting.get(), [record.action for record in records]))

    monkeypatch.setattr(store._database, "_tell", tell)
    _, users, training = await world.running(3)
    told.clear()
    await together(world, training, users, map(Submit, range(3)))
    assert told == [(user, ["update_accepted", *["round_closed"] * (user == users[-1])]) for user in users]


async def test_one_whose_caller_has_left_affects_no_other(world: World, store: Store) -> None:
    actor, users, training = await world.running(4)
    with halted(store) as go_on:
        calls = [asyncio.ensure_future(world.submit(training.training_id, 0, user)) for user in users[:3]]
        await asyncio.sleep(0)
        calls[1].cancel()
        await asyncio.sleep(0)
        go_on.set()
        first, _, last = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(first[0], Update)
    assert isinstance(last[0], Update)
    assert (await store.trainings.get(training.training_id, actor)).updates_arrived == 2


@pytest.mark.parametrize("error", [RuntimeError("no"), peewee.IntegrityError("twice"), peewee.OperationalError("no")])
async def test_if_they_fail_together_each_is_accepted_by_itself(
    world: World, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    actor, users, training = await world.running(4)
    joined, failed = submission._write, []

    def fail(one: Any, row: Any, updates: Sequence[UpdateRow], events: Any) -> None:
        joined(one, row, updates, events)
        if len(updates) > 1:
            failed.append(len(updates))
            raise error

    monkeypatch.setattr(submission, "_write", fail)
    outcomes = await together(world, training, users, map(Submit, range(4)))
    assert failed == [4]
    # Otherwise a fault of the joined verb would stay unknown.
    assert "submission.submit_update: 4 calls fail together" in caplog.text
    assert [closed for _, closed in outcomes] == [False, False, False, True]
    assert (await store.trainings.get(training.training_id, actor)).updates_arrived == 4
    await check(store)


@pytest.mark.parametrize("calls", [4, 1])
@pytest.mark.parametrize("begins", [True, False])
async def test_if_the_database_is_lost_none_is_accepted_and_none_runs_again(
    world: World, store: Store, monkeypatch: pytest.MonkeyPatch, begins: bool, calls: int
) -> None:
    actor, users, training = await world.running(4)
    asked: list[None] = []
    runs: list[int] = []
    run, begin_one = Transactions._run, Transactions.begin

    @contextmanager
    def fails(self: Transactions) -> Iterator[None]:
        asked.append(None)
        with begin_one(self):
            if begins:
                yield
            raise peewee.OperationalError("the server closed the connection")

    def noted(self: Transactions, attempt: Attempt) -> Any:
        runs.append(len(attempt.calls))
        return run(self, attempt)

    with monkeypatch.context() as patch:
        patch.setattr(Transactions, "begin", fails)
        patch.setattr(Transactions, "_run", noted)
        outcomes = await together(world, training, users, map(Submit, range(calls)))
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * calls
    assert runs == [calls] * begins
    # Each may take as long as a connection may.
    assert len(asked) <= min(calls, 2)
    assert (await store.trainings.get(training.training_id, actor)).updates_arrived == 0


async def test_many_at_once_are_accepted_in_one_order(world: World, store: Store) -> None:
    actor, users, training = await world.running(40)
    outcomes = await asyncio.gather(*(submit(world, training, users, Submit(number)) for number in range(40)))
    assert sorted(closed for _, closed in outcomes) == [False] * 39 + [True]
    assert (await store.trainings.get(training.training_id, actor)).updates_arrived == 40
    events = await store._database.run(
        lambda: list(
            EventRow.select()
            .where(EventRow.training_id == training.training_id, EventRow.kind == "UpdateAccepted")
            .order_by(EventRow.sequence)
        )
    )
    assert [event.payload["updates_arrived"] for event in events] == list(range(1, 41))
    await check(store)
