"""Replicas of one PostgreSQL database: leases and fencing, wake-ups, changes of credentials, and presence."""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from calls import until
from contracts.world import World, blob, new_id
from fedround_server.domain.errors import StoreUnavailable
from fedround_server.domain.replica import UserPresence
from fedround_server.domain.user import Role
from fedround_server.store import Store
from fedround_server.store.db import replica_session
from fedround_server.store.db.lease import NOW, DatabaseClock, Lease, elapsed, lease
from fedround_server.store.db.replica_session import LOOK, Look, ReplicaSession
from fedround_server.store.queries import replica

pytestmark = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


class Notes:
    """Notes what a session finds."""

    def __init__(self) -> None:
        self.looks: list[Look] = []
        self.wakes: list[frozenset[str] | None] = []

    def looked(self, look: Look) -> None:
        self.looks.append(look)

    def woken(self, topics: frozenset[str] | None) -> None:
        self.wakes.append(topics)

    @property
    def replica_ids(self) -> list[str]:
        return [one.replica_id for one in self.looks[-1].replicas]

    @property
    def topics(self) -> set[str]:
        return {topic for topics in self.wakes for topic in topics or ()}


class Other:
    """Another replica: a session of its own, in this process."""

    def __init__(self, database: str, journal_id: str = "", schema: int = 1000) -> None:
        self.notes = Notes()
        self.lease = Lease()
        self.session = ReplicaSession(
            database, "other", "2", schema, journal_id, self.lease, DatabaseClock(), self.notes
        )
        self.session.open()

    @property
    def id(self) -> str:
        return str(self.lease.replica_id)


@pytest.fixture
def notes(store: Store) -> Notes:
    """What this replica finds."""
    notes = Notes()
    store.join("this", "1", notes)
    return notes


@pytest.fixture
def other(database: str, notes: Notes) -> Iterator[Other]:
    other = Other(database)
    yield other
    other.session.close()


def end_lease(database: str, replica_id: str) -> None:
    """Ends the lease of a replica by the database's clock, as if it had not renewed it for long."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"UPDATE replica SET expire_time = {NOW} - 1 WHERE replica_id = %s", (replica_id,))


def keeper(database: str, training_id: str) -> tuple[str | None, int]:
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT keeper, epoch FROM round WHERE training_id = %s", (training_id,)).fetchall()
    return rows[-1]


def hand_over(database: str, training_id: str, replica_id: str) -> None:
    """Makes another replica the keeper of a round, as if it had closed it."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE round SET keeper = %s WHERE training_id = %s", (replica_id, training_id))


async def closed(world: World) -> str:
    """A training whose round is closed."""
    _, (client,), training = await world.running(1)
    _, is_closed = await world.submit(training.training_id, 0, client)
    assert is_closed
    return training.training_id


async def eventually(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def test_a_closed_round_belongs_to_the_replica_that_closed_it(notes: Notes, world: World, database: str) -> None:
    training_id = await closed(world)
    assert keeper(database, training_id) == (world.store.replica_id, 1)
    assert await world.commit(training_id)


async def test_a_server_that_is_no_replica_keeps_nothing(world: World, database: str) -> None:
    training_id = await closed(world)
    assert keeper(database, training_id) == (None, 1)
    assert world.store.replica_id is None
    assert await world.commit(training_id)


async def test_a_round_that_another_live_replica_keeps_is_left_to_it(other: Other, world: World, database: str) -> None:
    training_id = await closed(world)
    hand_over(database, training_id, other.id)
    store = world.store
    assert await store.rounds.find_aggregation(training_id) is None
    assert not await store.replicas.take_over(training_id, 0)
    assert not await store.rounds.commit(training_id, 0, 1, blob("version 1"), world.now)
    assert not await store.rounds.fail(training_id, 0, 1, "AGGREGATION_FAILED", "", world.now)
    assert not await store.rounds.reopen(training_id, 0, 1, [], world.now)
    assert keeper(database, training_id) == (other.id, 1)


async def test_the_round_of_a_dead_replica_is_taken_over_and_fenced(notes: Notes, world: World, database: str) -> None:
    training_id = await closed(world)
    dead = str(uuid.uuid4())
    hand_over(database, training_id, dead)
    assert await world.store.rounds.find_aggregation(training_id) is None
    assert await world.store.replicas.take_over(training_id, 0)
    assert keeper(database, training_id) == (world.store.replica_id, 2)
    # What was begun in the epoch before.
    assert not await world.store.rounds.commit(training_id, 0, 1, blob("version 1"), world.now)
    # Once only.
    assert await world.store.replicas.take_over(training_id, 0)
    assert keeper(database, training_id) == (world.store.replica_id, 2)
    assert await world.commit(training_id)
    assert not await world.store.replicas.take_over(training_id, 0)


async def test_rounds_that_a_replica_gives_up_are_anothers(notes: Notes, world: World, database: str) -> None:
    store = world.store
    before, kept = await closed(world), str(store.replica_id)
    store.start_draining()
    await store.replicas.give_up()
    assert keeper(database, before) == ("", 1)
    assert not await store.rounds.commit(before, 0, 1, blob("version 1"), world.now)
    assert keeper(database, await closed(world)) == ("", 1)
    lease.is_draining = False
    assert await store.replicas.take_over(before, 0)
    assert keeper(database, before) == (kept, 2)


async def test_a_replica_whose_lease_has_ended_does_not_commit(notes: Notes, world: World, database: str) -> None:
    training_id = await closed(world)
    before = str(world.store.replica_id)
    task = await world.store.rounds.find_aggregation(training_id)
    assert task is not None
    end_lease(database, before)
    assert not await world.store.rounds.commit(training_id, 0, 1, blob("version 1"), world.now)
    # It goes on under another id, for which the round is one of a dead replica.
    await eventually(lambda: world.store.replica_id != before)
    assert await world.store.rounds.find_aggregation(training_id) is None
    assert await world.store.replicas.take_over(training_id, 0)
    assert await world.commit(training_id)


async def test_without_a_lease_nothing_is_asked_or_changed(notes: Notes, world: World) -> None:
    actor = await world.user(Role.ACTOR)
    session = world.store._database._session
    assert session is not None
    session.close()
    lease._end = elapsed()
    assert not world.store.has_lease
    with pytest.raises(StoreUnavailable, match="lost its lease"):
        await world.store.users.get(actor)


async def test_a_lease_that_could_not_be_renewed_is_replaced(notes: Notes, world: World) -> None:
    before = world.store.replica_id
    # As after a pause of the process: by its own clock it ended, and by the database's it may not have.
    lease._end = elapsed()
    await eventually(lambda: world.store.replica_id != before)
    await eventually(lambda: notes.replica_ids == [world.store.replica_id])
    assert world.store.has_lease


def test_the_next_server_of_a_data_directory_takes_the_place_of_the_one_before(database: str) -> None:
    first = Other(database, "journal")
    second = Other(database, "journal")
    third = Other(database)
    assert [one.replica_id for one in third.notes.looks[0].replicas] == [second.id, third.id]
    for one in (second, third, first):
        one.session.close()


def test_replicas_see_each_other_at_once(notes: Notes, other: Other, store: Store) -> None:
    assert other.notes.replica_ids == [store.replica_id, other.id]
    until(lambda: notes.replica_ids == [store.replica_id, other.id])
    (this,) = (one for one in notes.looks[-1].replicas if one.replica_id == store.replica_id)
    assert (this.name, this.version) == ("this", "1")
    assert abs(this.start_time - datetime.now(UTC)) < timedelta(minutes=1)
    other.session.close()
    until(lambda: notes.replica_ids == [store.replica_id])


def test_wake_ups_reach_other_replicas_and_not_the_own(notes: Notes, other: Other, store: Store) -> None:
    until(lambda: len(notes.replica_ids) == 2)
    session = store._database._session
    assert session is not None
    session.notify(["a", "actor of b"])
    until(lambda: other.notes.topics >= {"a", "actor of b"})
    many = {new_id() for _ in range(2000)}
    other.session.notify(many)
    until(lambda: notes.topics >= many)
    assert not notes.topics & {"a", LOOK}
    assert not other.notes.topics & many
    assert None not in notes.wakes
    other.session.notify({new_id() for _ in range(20_000)})
    until(lambda: None in notes.wakes)


def test_wake_ups_that_are_not_urgent_are_few(notes: Notes, other: Other, store: Store) -> None:
    until(lambda: len(notes.replica_ids) == 2)
    session = store._database._session
    assert session is not None
    begun = elapsed()
    for number in range(50):
        session.notify([f"patient {number}"], is_urgent=False)
        time.sleep(0.01)
    until(lambda: "patient 49" in other.notes.topics)
    assert len(other.notes.wakes) <= 2 + (elapsed() - begun) / replica_session.PATIENT_SECONDS
    # An urgent one takes them along.
    session.notify(["patient"], is_urgent=False)
    session.notify(["urgent"])
    until(lambda: "urgent" in other.notes.topics)
    assert "patient" in other.notes.topics


def test_a_lost_session_wakes_all_once_it_is_back(notes: Notes, store: Store, database: str) -> None:
    before = store.replica_id
    with psycopg.connect(database, autocommit=True) as connection:
        ended = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fedround replica'"
        ).fetchall()
    assert ended == [(True,)]
    until(lambda: None in notes.wakes)
    assert store.replica_id == before
    looks = len(notes.looks)
    until(lambda: len(notes.looks) > looks)


async def test_changes_of_credentials_are_told_to_all(notes: Notes, other: Other, world: World) -> None:
    await eventually(lambda: any(look.changed_users == frozenset() for look in other.notes.looks))
    user = await world.user()
    (token,) = (await world.store.credentials.view(user, world.now)).tokens
    await world.store.credentials.revoke(user, token.token_id)
    removed = await world.user(Role.ACTOR)
    await world.store.users.remove(removed, world.now)

    def changed(notes: Notes) -> set[str]:
        return {one for look in notes.looks for one in look.changed_users or ()}

    for one in (notes, other.notes):
        await eventually(lambda one=one: changed(one) == {"", user, removed})  # type: ignore[misc]


async def test_changes_that_were_missed_concern_all(
    notes: Notes, world: World, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await eventually(lambda: len(notes.looks) > 1)
    with psycopg.connect(database) as connection:
        # Two changes, of which the first was forgotten before it was read.
        connection.execute("UPDATE server_state SET credential_changes = credential_changes + 2")
        connection.execute("INSERT INTO credential_change SELECT credential_changes, 'a' FROM server_state")
    looks = len(notes.looks)
    await eventually(lambda: any(look.changed_users is None for look in notes.looks[looks:]))


async def test_old_changes_are_forgotten(notes: Notes, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await eventually(lambda: notes.looks)
    monkeypatch.setattr(replica_session, "KEPT_CHANGES", 3)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE server_state SET credential_changes = credential_changes + 10")
        connection.execute(
            "INSERT INTO credential_change SELECT credential_changes - 10 + n, 'a' FROM server_state,"
            " generate_series(1, 10) AS n"
        )
        await eventually(lambda: connection.execute("SELECT count(*) FROM credential_change").fetchone() == (3,))
    assert notes.looks[-1].changed_users is not None


async def test_presence_is_told_in_versions(notes: Notes, other: Other, world: World) -> None:
    store, users = world.store, sorted(new_id() for _ in range(3))
    me = str(store.replica_id)
    told = [UserPresence(user, True, None, (("s", None, "2026"),), (("gpu", "1"),)) for user in users]
    await store.replicas.publish_presence(me, 0, told)
    assert await store.replicas.presence(me, 0) == list(enumerate(told, 1))
    gone = UserPresence(users[0], False, datetime(2026, 1, 1, tzinfo=UTC))
    await store.replicas.publish_presence(me, 3, [gone])
    assert await store.replicas.presence(me, 1) == [(2, told[1]), (3, told[2]), (4, gone)]
    assert await store.replicas.presence(me, 4) == []
    await eventually(
        lambda: [one.presence_version for one in other.notes.looks[-1].replicas if one.replica_id == me] == [4]
    )


async def test_news_are_what_notifications_tell_of(world: World) -> None:
    actor, (client,), training = await world.running(1)
    logs = {training.training_id: 0, new_id(): 0}
    ((found,), registered) = await world.store.replicas.news(logs, datetime(2026, 1, 1, tzinfo=UTC))
    assert {user for user, _ in registered} == {actor, client}
    assert found.training_id == training.training_id
    assert found.last == found.shared
    await world.submit(training.training_id, 0, client)
    # An accepted update is told to the actor alone.
    (([new], none)) = await world.store.replicas.news({training.training_id: found.last}, world.now)
    assert new.last > found.last
    assert none == set()
    assert await world.store.replicas.news({training.training_id: new.last}, world.now) == ([], set())


async def test_news_tell_of_the_latest_of_many_registrations(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "MAX_REGISTERED", 2)
    await world.running(4)
    _, registered = await world.store.replicas.news({}, datetime(2026, 1, 1, tzinfo=UTC))
    # Two participants, and an actor.
    assert 2 <= len(registered) <= 3
