"""What a coordinator does as one of several replicas: it learns what others did, and takes up what they have left."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from contracts.coordination import Coordination, coordinating
from contracts.test_replicas import Other, end_lease, eventually, hand_over
from contracts.world import new_id
from fedround_server.blobs import UploadRef
from fedround_server.coordinator import replicas
from fedround_server.coordinator.housekeeping import COLLECTION_INTERVAL
from fedround_server.domain.errors import AlreadyParticipating
from fedround_server.domain.event import Event, TrainingRemoved
from fedround_server.domain.identity import Credentials
from fedround_server.domain.replica import UserPresence
from fedround_server.domain.token import hash_token
from fedround_server.domain.user import Role
from fedround_server.store import Store
from fedround_server.store.db.lease import Lease
from fedround_server.store.db.replica_session import Look
from fedround_server.store.queries import replica
from fedround_server.store.queries.replica import from_presence
from fedround_server.store.verbs.replica import PUBLISH

pytestmark = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@asynccontextmanager
async def joined(store: Store, folder: Path, database: str) -> AsyncIterator[tuple[Coordination, Other]]:
    """A coordinator that is a replica, and knows of another one."""
    async with coordinating(store, folder) as coordination:
        coordination.coordinator.replicas.join("this", "1")
        await coordination.coordinator.recover()
        other = Other(database)
        try:
            await eventually(lambda: coordination.context.peers.others)
            yield coordination, other
        finally:
            other.session.close()


def tell(database: str, other: Other, version: int, *users: UserPresence) -> None:
    """Has the other replica tell of users."""
    columns = [list(values) for values in zip(*map(from_presence, users), strict=True)]
    with psycopg.connect(database) as connection:
        connection.execute(PUBLISH, (other.id, version, *columns))
        last = (version + len(users), other.id)
        connection.execute("UPDATE replica SET presence_version = %s WHERE replica_id = %s", last)


async def subscribed(coordination: Coordination, user: str, training_id: str | None) -> "asyncio.Queue[Any]":
    """What a subscription is sent, once it waits."""
    sent: asyncio.Queue[Any] = asyncio.Queue()

    async def greet() -> None:
        await sent.put("greeting")

    follow = coordination.coordinator.subscriptions.follow(user, training_id, {}, sent.put, greet)
    coordination.context.background.create_task(follow)
    assert await sent.get()
    return sent


async def test_a_subscriber_learns_of_an_event_without_a_notification(
    store: Store, tmp_path: Path, database: str
) -> None:
    async with joined(store, tmp_path, database) as (coordination, _):
        actor, (client,), training = await coordination.running(1)
        sent = await subscribed(coordination, client, training.training_id)
        # As by another server, whose wake-up is lost.
        await store.trainings.remove(training.training_id, actor, force=True, now=coordination.world.now)
        event = await sent.get()
        assert isinstance(event, Event)
        assert isinstance(event.payload, TrainingRemoved)


@pytest.mark.parametrize("at_most", [1000, 1])
async def test_a_user_that_another_server_registers_learns_of_it_without_a_notification(
    store: Store, tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch, at_most: int
) -> None:
    for module in (replicas, replica):
        monkeypatch.setattr(module, "MAX_REGISTERED", at_most)
    async with joined(store, tmp_path, database) as (coordination, _):
        actor, _, training = await coordination.running(1)
        late = await coordination.world.user()
        sent = await subscribed(coordination, late, None)
        now = coordination.clock.now() + timedelta(seconds=1)
        await store.trainings.register(training.training_id, actor, [late], now)
        assert (await sent.get()).training_id == training.training_id


async def test_users_of_another_replica_are_present(store: Store, tmp_path: Path, database: str) -> None:
    async with joined(store, tmp_path, database) as (coordination, other):
        presence, user, now = coordination.context.presence, new_id(), coordination.clock.now
        session = ("session", None, "2026-01-01T00:00:00+00:00")
        tell(database, other, 0, UserPresence(user, True, None, (session,), (("gpu", "1"),)))
        await eventually(lambda: presence.is_listening(user, now()))
        assert presence.is_connected(user, now())
        assert user in presence.listeners(now())
        assert presence.attributes(user) == {"gpu": "1"}
        assert presence.last_seen(user, coordination.clock.now()) == coordination.clock.now()
        client = await coordination.world.user()
        following = coordination.coordinator.subscriptions.follow
        with pytest.raises(AlreadyParticipating):
            await following(user, None, {}, print, print, session_id="another")  # type: ignore[arg-type]
        seen = coordination.clock.now()
        tell(database, other, 1, UserPresence(user, False, seen), UserPresence(client, True, None))
        await eventually(lambda: not presence.is_connected(user, now()) and presence.is_listening(client, now()))
        assert presence.last_seen(user, coordination.clock.now()) == seen
        # Those of a replica that ends were seen until then.
        other.session.close()
        await eventually(lambda: not presence.is_listening(client, now()))
        assert presence.last_seen(client, coordination.clock.now()) == coordination.clock.now()


async def test_how_much_has_arrived_at_another_replica_is_shown(store: Store, tmp_path: Path, database: str) -> None:
    async with joined(store, tmp_path, database) as (coordination, other):
        actor, (user, _), training = await coordination.running(2)
        training_id = training.training_id
        explain = coordination.coordinator.round_status.explain

        async def shown() -> list[int]:
            return sorted(one.uploaded_bytes for one in (await explain(training_id, None, actor)).members)

        uploads = ((training_id, 1, 7), (new_id(), 0, 8), (training_id, 0, 5))
        tell(database, other, 0, UserPresence(user, True, None, uploads=uploads))
        elsewhere = coordination.context.presence.elsewhere
        await eventually(lambda: elsewhere.uploaded_bytes(user, training_id, 0))
        assert await shown() == [0, 5]
        await coordination.world.submit(training_id, 0, user)
        assert await shown() == [0, 0]


async def test_other_replicas_are_told_how_much_has_arrived(
    store: Store, tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "UPLOADS_SECONDS", 0.0)
    async with joined(store, tmp_path, database) as (coordination, _):
        user, training_id, arriving = await coordination.world.user(), new_id(), SimpleNamespace(size_bytes=1 << 20)

        def told() -> Any:
            page = replica.read_presence(str(store.replica_id), 0)
            return [one.uploads for _, one in page if one.user_id == user][-1:]

        async def eventually_told(wanted: list[tuple[tuple[str, int, int], ...]]) -> None:
            while await store._database.run(told) != wanted:
                await asyncio.sleep(0.05)

        progress = coordination.coordinator.uploads.progress
        coordination.context.presence.begin_call(user, coordination.clock.now())
        with progress.watch(training_id, 3, user, UploadRef(user, new_id()), arriving):
            await eventually_told([((training_id, 3, 1 << 20),)])
            arriving.size_bytes += 1
            await eventually_told([((training_id, 3, (1 << 20) + 1),)])
        # Its participant may go on at another replica, where the rest arrives.
        coordination.context.presence.end_call(user, coordination.clock.now())
        await eventually_told([((training_id, 3, (1 << 20) + 1),)])
        before = store.replica_id
        end_lease(database, str(before))
        await eventually(lambda: store.replica_id not in (before, None))
        await eventually_told([((training_id, 3, (1 << 20) + 1),)])
        progress.forget(training_id)
        await eventually_told([()])


async def test_who_checks_in_at_another_replica_is_present_until_it_is_late(
    store: Store, tmp_path: Path, database: str
) -> None:
    async with joined(store, tmp_path, database) as (coordination, other):
        presence, user, now = coordination.context.presence, new_id(), coordination.clock.now
        tell(database, other, 0, UserPresence(user, False, now(), expected_until=now() + timedelta(minutes=1)))
        await eventually(lambda: presence.is_listening(user, now()))
        assert presence.is_connected(user, now())
        assert user in presence.listeners(now())
        # It comes back to this one if the other one has ended meanwhile.
        other.session.close()
        await eventually(lambda: not coordination.context.peers.others)
        await asyncio.sleep(1.5)
        assert presence.is_connected(user, now())
        assert user in presence.listeners(now())
        coordination.clock.advance(timedelta(minutes=1))
        assert not presence.is_connected(user, now())
        assert user not in presence.listeners(now())


async def test_other_replicas_are_told_until_when_a_user_is_expected(
    store: Store, tmp_path: Path, database: str
) -> None:
    async with joined(store, tmp_path, database) as (coordination, _):
        user, until = new_id(), coordination.clock.now() + timedelta(hours=1)
        coordination.context.presence.see(user, coordination.clock.now())
        coordination.context.presence.expect(user, until)
        me = str(store.replica_id)

        async def told(time: datetime) -> None:
            while time not in [one.expected_until for _, one in await store.replicas.presence(me, 0)]:
                await asyncio.sleep(0.05)

        await told(until)
        # News, however soon after the last.
        coordination.context.presence.expect(user, until + timedelta(hours=1))
        await told(until + timedelta(hours=1))


async def test_callers_are_looked_up_again_as_soon_as_another_replica_has_changed_one(
    store: Store, tmp_path: Path, database: str
) -> None:
    async with joined(store, tmp_path, database) as (coordination, _):
        coordinator = coordination.coordinator
        made, token = await coordinator.users.create("one", Role.CLIENT, None, ())
        credentials = Credentials(hash_token(token), ())
        async with coordinator.access.admit(credentials):
            assert coordinator.access._identities._kept
        # What follows a look may wait for the database.
        coordinator.replicas._take_look(Look(coordination.context.peers.replicas, frozenset({made.user.user_id})))
        assert not coordinator.access._identities._kept


async def test_a_replica_without_a_lease_is_cut_off_from_others(
    store: Store, tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with joined(store, tmp_path, database) as (coordination, _):
        replica_id = store.replica_id
        assert not coordination.coordinator.replicas.is_cut_off
        with monkeypatch.context() as patch:
            patch.setattr(Lease, "is_held", False)
            assert coordination.coordinator.replicas.is_cut_off
            # A single server has no other that could answer.
            coordination.context.peers.set((), replica_id)
            assert not coordination.coordinator.replicas.is_cut_off
        await eventually(lambda: coordination.context.peers.others)
        assert not coordination.coordinator.replicas.is_cut_off


async def test_each_replica_collects_its_own_uploads(store: Store, tmp_path: Path, database: str) -> None:
    async with joined(store, tmp_path, database) as (coordination, other):
        with psycopg.connect(database) as connection:
            connection.execute("UPDATE replica SET start_time = 0 WHERE replica_id = %s", (other.id,))
        # The other one collects the blobs of both.
        await eventually(lambda: not coordination.context.peers.is_first)
        upload = coordination.context.blobs.files.uploads / new_id() / "left"
        upload.parent.mkdir()
        upload.write_bytes(b"some")
        os.utime(upload, (0, 0))
        await coordination.clock.asleep(COLLECTION_INTERVAL)
        coordination.clock.advance(COLLECTION_INTERVAL)
        await eventually(lambda: not upload.exists())


async def test_many_users_are_told_of_with_few_statements(
    store: Store, tmp_path: Path, database: str, verbs: list[str]
) -> None:
    async with joined(store, tmp_path, database) as (coordination, _):
        presence, clock = coordination.context.presence, coordination.clock
        users = {new_id() for _ in range(3000)}
        for user in users:
            presence.begin(user, clock.now())
        me = str(store.replica_id)

        def told() -> set[tuple[str, bool]]:
            with psycopg.connect(database) as connection:
                query = "SELECT user_id, listening FROM presence WHERE replica_id = %s"
                return set(connection.execute(query, (me,)).fetchall())

        await eventually(lambda: told() == {(user, True) for user in users})
        assert verbs.count("replica.publish_presence") <= 4
        # A call of a user that is connected anyway is no news, and one that leaves is.
        verbs.clear()
        first, *others = sorted(users)
        for user in others:
            presence.begin_call(user, clock.now())
            presence.end_call(user, clock.now())
        presence.end(first, clock.now())
        await eventually(lambda: (first, False) in told())
        assert verbs.count("replica.publish_presence") == 1


async def test_what_was_told_of_users_and_read_from_replicas_that_are_gone_is_dropped(
    store: Store, tmp_path: Path, database: str
) -> None:
    async with joined(store, tmp_path, database) as (coordination, other):
        presence, clock = coordination.context.presence, coordination.clock
        following = coordination.coordinator.replicas
        gone, connected, expected = new_id(), new_id(), new_id()
        for user in (gone, connected):
            presence.begin(user, clock.now())
        presence.see(expected, clock.now())
        presence.expect(expected, clock.now() + timedelta(hours=1))
        tell(database, other, 0, UserPresence(new_id(), True, None))
        await eventually(lambda: following._told.keys() >= {gone, connected, expected} and other.id in following._read)
        presence.end(gone, clock.now())
        await eventually(lambda: not following._told[gone].listening)
        clock.advance(replicas.SEEN_INTERVAL)
        await eventually(lambda: gone not in following._told)
        assert following._told.keys() >= {connected, expected}
        # It is told of again when it is back.
        presence.begin(gone, clock.now())
        await eventually(lambda: gone in following._told and following._told[gone].listening)
        end_lease(database, other.id)
        other.session.close()
        await eventually(lambda: not following._read)


async def test_the_round_of_a_dead_replica_is_aggregated(store: Store, tmp_path: Path, database: str) -> None:
    async with joined(store, tmp_path, database) as (coordination, other):
        coordination.engine.may_end.clear()
        actor, (client,), training = await coordination.running(1)
        await coordination.submit(training.training_id, 0, client)
        await eventually(lambda: coordination.engine.jobs)
        # Another replica has taken it over meanwhile, with a higher epoch.
        hand_over(database, training.training_id, other.id)
        coordination.engine.may_end.set()
        for _ in range(3):
            await coordination.coordinator.rounds.reconcile()
        found = await store.trainings.get(training.training_id, actor)
        assert found.model_version == 0
        end_lease(database, other.id)
        other.session.close()
        await coordination.until(actor, training.training_id, lambda training: training.model_version == 1)


async def test_a_round_that_a_live_replica_keeps_is_not_touched(store: Store, tmp_path: Path, database: str) -> None:
    async with joined(store, tmp_path, database) as (coordination, other):
        actor, (client,), training = await coordination.world.running(1)
        await coordination.world.submit(training.training_id, 0, client)
        hand_over(database, training.training_id, other.id)
        await coordination.coordinator.rounds.reconcile()
        await coordination.coordinator.rounds.follow_up(training.training_id)
        assert coordination.engine.jobs == []
        assert (await store.trainings.get(training.training_id, actor)).round_closed


async def test_what_others_have_ended_is_forgotten(store: Store, tmp_path: Path, database: str) -> None:
    async with joined(store, tmp_path, database) as (coordination, _):
        actor, _, training = await coordination.running(1)
        assert coordination.coordinator.rounds.absences.watched() == [training.training_id]
        await store.trainings.remove(training.training_id, actor, force=True, now=coordination.world.now)
        await coordination.coordinator.rounds.reconcile()
        assert coordination.coordinator.rounds.absences.watched() == []
