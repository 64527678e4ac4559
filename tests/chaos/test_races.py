"""Two things at the same instant, again and again: each has one outcome of the two that are right.

On PostgreSQL both transactions have begun before either goes on. SQLite has one writer: there only the order changes.
A deadlock is no outcome: its victim would find the database unavailable.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import pytest_asyncio

from chaos.race import Barrier, Race
from contracts.audits import chained
from contracts.coordination import coordinating
from contracts.world import SPEC, blob, update
from fedround_server.domain.cohort import Cohort
from fedround_server.domain.errors import (
    CohortImpossible,
    FedroundError,
    NotInCohort,
    Quota,
    RoundNotOpen,
    TokenInvalid,
    TrainingNotInitial,
    UnknownClients,
    UpdateExists,
    UserNotFound,
)
from fedround_server.domain.event import (
    ClientRemoved,
    Event,
    RoundClosed,
    RoundStarted,
    TrainingRemoved,
    UpdateAccepted,
)
from fedround_server.domain.policy import RoundPolicy
from fedround_server.domain.training import TrainingState
from fedround_server.domain.user import Role
from fedround_server.store import Store
from fedround_server.store.db.group_commit import Attempt, Call, Transactions
from sizes import size

REPEATS = size("RACES", 2)
pytestmark = [pytest.mark.attack, pytest.mark.timeout(300 + 2 * REPEATS)]


@pytest_asyncio.fixture
async def race(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Race]:
    barrier = None
    if database:
        barrier = Barrier()
        run = Transactions._run_in_transaction

        def waits(self: Transactions, attempt: Attempt) -> Any:
            (call,) = attempt.calls
            waited: list[None] = []

            def wait() -> None:
                # Once, also if it is run by itself since it cannot be joined.
                if not waited:
                    waited.append(None)
                    barrier.wait()

            def behind() -> Any:
                wait()
                return call.verb()

            def joined(*arguments: Any) -> Any:
                wait()
                return joint.run(*arguments)

            joint = call.joint
            late = replace(call, verb=behind, joint=None if joint is None else replace(joint, run=joined))
            return run(self, replace(attempt, calls=[late]))

        # Each waits in a transaction of its own.
        monkeypatch.setattr(Call, "group", property(lambda self: self))
        monkeypatch.setattr(Transactions, "_run_in_transaction", waits)
    with Store(database or tmp_path / "fedround.db") as store:
        async with coordinating(store, tmp_path / "files") as coordination:
            yield Race(coordination, barrier)


@pytest.fixture(autouse=True)
def no_deadlocks(database: str) -> Iterator[None]:
    """No transaction may have been the victim of a deadlock, whatever came of it."""
    with _counting(database) as count:
        before = count()
        yield
        assert count() == before


@contextmanager
def _counting(database: str) -> Iterator[Callable[[], int]]:
    if not database:
        yield lambda: 0
        return
    import psycopg

    with psycopg.connect(database, autocommit=True) as session:

        def count() -> int:
            row = session.execute(
                "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
            ).fetchone()
            assert row is not None
            return int(row[0])

        yield count


def fails_with(outcome: Any, *kinds: type[FedroundError]) -> bool:
    """Whether it failed, and then with one of the expected errors."""
    if not isinstance(outcome, FedroundError):
        return False
    assert isinstance(outcome, kinds), outcome
    return True


def the_one(events: list[Event], kind: type) -> Event:
    (found,) = [event for event in events if isinstance(event.payload, kind)]
    return found


Scene: TypeAlias = Callable[[Race], Awaitable[None]]
SCENES: list[Scene] = []


def scene(run: Scene) -> Scene:
    SCENES.append(run)
    return run


@scene
async def two_last_updates(race: Race) -> None:
    actor, (first, *last), training = await race.coordination.running(3, target_num_updates=1)
    jobs = len(race.coordination.engine.jobs)
    await race.coordination.submit(training.training_id, 0, first)
    outcomes = await race.run(*(race.coordination.submit(training.training_id, 0, user) for user in last))
    assert outcomes == [None, None]
    ended = await race.until(actor, training, lambda training: training.state.is_ended)
    assert (ended.state, ended.model_version) == (TrainingState.COMPLETED, 1)
    assert len(race.coordination.engine.jobs) == jobs + 1
    assert len(race.coordination.engine.jobs[-1].updates) == 3
    assert the_one(await race.log(training.training_id, actor), RoundClosed).payload.num_updates == 3  # type: ignore[union-attr]


@scene
async def two_starts(race: Race) -> None:
    world = race.coordination.world
    actor, users = await world.user(Role.ACTOR), await world.users(2)
    made = await world.training(actor, users)
    trainings = race.coordination.coordinator.trainings
    outcomes = await race.run(*(trainings.start(made.training_id, actor, None) for _ in range(2)))
    assert sum(fails_with(outcome, TrainingNotInitial) for outcome in outcomes) == 1
    the_one(await race.log(made.training_id, actor), RoundStarted)


@scene
async def the_same_start_twice(race: Race) -> None:
    world = race.coordination.world
    actor, users = await world.user(Role.ACTOR), await world.users(2)
    made = await world.training(actor, users)
    request = race.coordination.context.new_id()
    trainings = race.coordination.coordinator.trainings
    outcomes = await race.run(*(trainings.start(made.training_id, actor, request) for _ in range(2)))
    assert [outcome.state for outcome in outcomes] == [TrainingState.ONGOING] * 2
    the_one(await race.log(made.training_id, actor), RoundStarted)


@scene
async def labels_against_start_registration_and_removal(race: Race) -> None:
    world, coordinator = race.coordination.world, race.coordination.coordinator
    actor, labelled, other = await world.user(Role.ACTOR), await world.user(gpu="yes"), await world.user(gpu="yes")
    made = await world.training(actor, [labelled], cohort=Cohort(labels={"gpu": "yes"}))
    before = len(await chained(race.store))
    start, *_ = await race.run(
        coordinator.trainings.start(made.training_id, actor, None),
        coordinator.users.set_labels(labelled, {}),
        coordinator.trainings.register(made.training_id, actor, [other]),
        coordinator.users.set_labels(other, {}),
    )
    registered, unlabelled = {labelled}, set()
    for entry in (await chained(race.store))[before:]:
        if entry.action == "round_opened":
            break
        if entry.action == "user_updated":
            unlabelled.add(entry.subject)
        elif entry.action == "clients_registered":
            registered.add(other)
    if not fails_with(start, CohortImpossible):
        view = await race.store.rounds.explain(made.training_id, 0, actor)
        # Drawn of those who, in the order of the audit log, were registered and had the labels.
        assert {member.user_id for member in view.members} == registered - unlabelled


@scene
async def labels_against_removal_of_the_user(race: Race) -> None:
    actor, (stays, leaves), training = await race.coordination.running(2, cohort=Cohort(size=2))
    coordinator = race.coordination.coordinator
    removal, labels, submit = await race.run(
        coordinator.remove_user(leaves, force=False),
        coordinator.users.set_labels(leaves, {"gpu": "yes"}),
        race.coordination.submit(training.training_id, 0, stays),
    )
    assert (removal, submit) == (None, None)
    fails_with(labels, UserNotFound)
    await race.until(actor, training, lambda training: training.round == 1)


@scene
async def removal_against_submit(race: Race) -> None:
    actor, (stays, leaves), training = await race.coordination.running(2, target_num_updates=2)
    await race.coordination.submit(training.training_id, 0, stays)
    trainings = race.coordination.coordinator.trainings
    removal, submit = await race.run(
        trainings.remove_clients(training.training_id, actor, [leaves]),
        race.coordination.submit(training.training_id, 0, leaves),
    )
    # Either closes the round: then it is too late for the other one to change who counts.
    assert not isinstance(removal, FedroundError)
    late = fails_with(submit, NotInCohort, RoundNotOpen)
    await race.until(actor, training, lambda training: training.round == 1)
    events = await race.log(training.training_id, actor)
    assert the_one(events, RoundClosed).payload.num_updates == (1 if late else 2)  # type: ignore[union-attr]
    removed = the_one(events, ClientRemoved).sequence
    accepted = [event.sequence for event in events if isinstance(event.payload, UpdateAccepted)]
    assert all(sequence < removed for sequence in accepted)
    assert len(accepted) == (1 if late else 2)


@scene
async def registration_against_close(race: Race) -> None:
    actor, (client,), training = await race.coordination.running(1, target_num_updates=2)
    new = await race.coordination.world.user()
    trainings = race.coordination.coordinator.trainings
    registration, submit = await race.run(
        trainings.register(training.training_id, actor, [new]),
        race.coordination.submit(training.training_id, 0, client),
    )
    assert submit is None
    assert new in registration.participant_ids
    await race.until(actor, training, lambda training: training.round == 1)
    events = await race.log(training.training_id, actor)
    start = max(event.sequence for event in events if type(event.payload).__name__ == "TrainingStarted")
    opened = max(event.sequence for event in events if isinstance(event.payload, RoundStarted))
    view = await race.store.rounds.explain(training.training_id, 1, actor)
    assert {member.user_id for member in view.members} == ({client, new} if start < opened else {client})


@scene
async def two_different_updates_of_one(race: Race) -> None:
    actor, (client, _), training = await race.coordination.running(2)
    accept = race.coordination.coordinator.submissions._accept_update
    both = [update(training.training_id, 0, client, content) for content in ("one", "other")]
    outcomes = await race.run(*(accept(new) for new in both))
    assert sum(fails_with(outcome, UpdateExists) for outcome in outcomes) == 1
    (receipt,) = [outcome for outcome in outcomes if not isinstance(outcome, FedroundError)]
    accepted = the_one(await race.log(training.training_id, actor), UpdateAccepted).payload
    assert accepted.update_id == receipt.update_id  # type: ignore[union-attr]
    again = [new for new in both if new.blob == receipt.blob]
    assert (await accept(again[0])).update_id == receipt.update_id


@scene
async def the_same_update_twice(race: Race) -> None:
    actor, (client, _), training = await race.coordination.running(2)
    new = update(training.training_id, 0, client)
    first, second = await race.run(*(race.coordination.coordinator.submissions._accept_update(new) for _ in range(2)))
    assert first.update_id == second.update_id
    the_one(await race.log(training.training_id, actor), UpdateAccepted)


@scene
async def submit_against_deadline(race: Race) -> None:
    policy = RoundPolicy(deadline=timedelta(hours=1))
    actor, (first, last), training = await race.coordination.running(2, target_num_updates=1, round_policy=policy)
    await race.coordination.submit(training.training_id, 0, first)
    rounds = race.coordination.coordinator.rounds
    due, submit = await race.run(
        rounds._judge(training.training_id, 0, 1, due=True), race.coordination.submit(training.training_id, 0, last)
    )
    assert due is None
    late = fails_with(submit, RoundNotOpen)
    ended = await race.until(actor, training, lambda training: training.state.is_ended)
    assert ended.state is (TrainingState.ERROR if late else TrainingState.COMPLETED)
    assert ended.model_version == (0 if late else 1)
    await race.log(training.training_id, actor)


@scene
async def removal_of_the_training_against_commit(race: Race) -> None:
    actor, (client,), training = await race.coordination.running(1, target_num_updates=1)
    race.coordination.engine.may_end.clear()
    await race.coordination.submit(training.training_id, 0, client)
    task = await race.store.rounds.find_aggregation(training.training_id)
    assert task is not None
    result = blob("a result")
    commit, removal = await race.run(
        race.store.rounds.commit(training.training_id, 0, task.round.epoch, result, race.coordination.world.now),
        race.coordination.coordinator.trainings.remove(training.training_id, actor, force=True),
    )
    race.coordination.engine.may_end.set()
    assert removal is None
    assert commit in (True, False)
    events = await race.log(training.training_id, actor)
    assert isinstance(events[-1].payload, TrainingRemoved)
    assert any(isinstance(event.payload, RoundClosed) for event in events) == commit
    assert (await race.store.models.get_version(training.model_id, None, actor, "")).version == int(commit)


@scene
async def two_creates_at_the_edge_of_the_quota(race: Race) -> None:
    world = race.coordination.world
    actor = await world.user(Role.ACTOR)
    outcomes = await race.run(*(world.create(actor, SPEC, quota=1) for _ in range(2)))
    assert sum(fails_with(outcome, Quota) for outcome in outcomes) == 1
    assert len(await race.store.trainings.page(actor, as_actor=True, before=None, limit=10)) == 1


@scene
async def removal_of_a_user_against_its_submit(race: Race) -> None:
    actor, (stays, leaves), training = await race.coordination.running(2, target_num_updates=1)
    await race.coordination.submit(training.training_id, 0, stays)
    removal, submit = await race.run(
        race.coordination.coordinator.remove_user(leaves, force=False),
        race.coordination.submit(training.training_id, 0, leaves),
    )
    assert removal is None
    late = fails_with(submit, NotInCohort, RoundNotOpen)
    await race.until(actor, training, lambda training: training.state is TrainingState.COMPLETED)
    closed = the_one(await race.log(training.training_id, actor), RoundClosed).payload
    assert closed.num_updates == (1 if late else 2)  # type: ignore[union-attr]


@scene
async def removal_of_a_user_against_its_registration(race: Race) -> None:
    actor, _, training = await race.coordination.running(1)
    user = await race.coordination.world.user()
    removal, registration = await race.run(
        race.coordination.coordinator.remove_user(user, force=False),
        race.coordination.coordinator.trainings.register(training.training_id, actor, [user]),
    )
    assert removal is None
    fails_with(registration, UnknownClients)
    assert user not in (await race.store.trainings.get(training.training_id, actor)).participant_ids
    await race.log(training.training_id, actor)


@scene
async def removal_of_the_actor_against_its_create(race: Race) -> None:
    world = race.coordination.world
    actor, client = await world.user(Role.ACTOR), await world.user()
    create, removal = await race.run(
        world.create(actor, replace(SPEC, client_ids=(client,))),
        race.coordination.coordinator.remove_user(actor, force=True),
    )
    assert removal is None
    fails_with(create, TokenInvalid)
    assert await race.store.trainings.page(actor, as_actor=True, before=None, limit=10) == []


@pytest.mark.parametrize("run", SCENES, ids=lambda run: run.__name__)
async def test_a_race_has_one_right_outcome(race: Race, run: Scene) -> None:
    for _ in range(REPEATS):
        await run(race)
