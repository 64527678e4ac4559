"""A database that version 0.1.0 wrote is migrated: nothing is lost, and its trainings go on.

data/database_0.1.0.json has the rows of four trainings: one that is complete, with an evaluation, a best version and a
SWAG posterior; one in the middle of a daisy chain; one that missed its deadline twice; and one with a rejected update.
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playhouse.migrations import Runner

from contracts.audits import chained, check
from contracts.world import World, blob
from fedround_client import AuditHead
from fedround_server.domain.event import RoundExtended, RoundStarted, TrainingFailed
from fedround_server.domain.model import POSTERIOR, BlobRef
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import IntegerTensors, TrainingState
from fedround_server.domain.update import NewUpdate, Update
from fedround_server.store import Store
from fedround_server.store.db.connection import connect
from fedround_server.store.db.migrate import MIGRATIONS
from fedround_server.store.tables.schema import EventRow, LastSeenRow, ModelRow, TrainingRow, UpdateRow, UserRow

OLD = json.loads((Path(__file__).with_name("data") / "database_0.1.0.json").read_text())
BOOLEANS = {"removed", "stored"}


@pytest.fixture
def upgraded(empty_database: str, tmp_path: Path) -> str:
    """The URL or path of a database with the tables and rows of 0.1.0."""
    url = empty_database or str(tmp_path / "fedround.db")
    database = connect(url)
    with database.connection_context():
        Runner(database, str(MIGRATIONS)).up(target="0001_initial")
        database.execute_sql("DELETE FROM audit_head")
        for table, content in OLD.items():
            columns = content["columns"]
            marks = ", ".join([database.param] * len(columns))
            for row in content["rows"]:
                values = [bool(value) if name in BOOLEANS else value for name, value in zip(columns, row, strict=True)]
                database.execute_sql(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", values)
    database.close_all() if hasattr(database, "close_all") else database.close()
    return url


class Old:
    """The trainings of the old database by name, and its users."""

    def __init__(self) -> None:
        columns = OLD["training"]["columns"]
        rows = [dict(zip(columns, row, strict=True)) for row in OLD["training"]["rows"]]
        self.trainings = {json.loads(row["spec"])["name"]: row for row in rows}
        users = {row[1]: row[0] for row in OLD["users"]["rows"]}
        self.actor = users["actor"]
        self.clients = [users[f"ward {number}"] for number in (1, 2, 3)]


async def events(store: Store, training_id: str, user_id: str) -> list[Any]:
    return [event.payload for event in (await store.events.poll(training_id, user_id, 0, 1000)).events]


async def test_artifacts_and_versions_are_kept(upgraded: str) -> None:
    old = Old()
    training = old.trainings["swag"]
    with Store(upgraded) as store:
        found = await store.trainings.get(training["training_id"], old.actor)
        assert (found.state, found.model_version, found.best_version) == (TrainingState.COMPLETED, 1, 1)
        version = await store.models.get_version(found.model_id, 1, old.actor)
        posterior = version.artifacts[POSTERIOR]
        assert (version.blob, posterior.blob) == (blob("version 1"), blob("posterior"))
        assert posterior.details == {"rank": 6}
        assert (await store.models.get_version(found.model_id, 0, old.actor)).artifacts == {}
        needed = await store.models.digests_in_use([posterior.blob.sha256])
        assert needed == {posterior.blob.sha256}
        views = await store.models.page_versions(found.model_id, old.actor, None, 10)
        assert views[0].metrics == {"loss": 0.25}


async def test_a_daisy_chain_goes_on(upgraded: str) -> None:
    old = Old()
    training_id = old.trainings["chain"]["training_id"]
    with Store(upgraded) as store:
        world = World(store)
        current = await store.rounds.current(training_id)
        assert current is not None
        assert (current.number, current.kind, current.state, current.step) == (1, KINDS["CHAINED"], RoundState.OPEN, 1)
        started = [one for one in await events(store, training_id, old.clients[1]) if isinstance(one, RoundStarted)]
        assert [(one.kind, one.assigned) for one in started] == [("TRAIN", False), ("TRAIN", True)]
        assert current.deadline is not None
        assert current.deadline - current.open_time == timedelta(days=3650)
        assert started[-1].deadline == current.deadline
        _, assigned = await store.rounds.assigned(training_id, 1, old.clients[1])
        assert assigned in {blob(f"0 {client}") for client in old.clients} - {blob(f"0 {old.clients[1]}")}
        for client in old.clients[1:]:
            await world.submit(training_id, 1, client)
        assert await world.commit(training_id)
        assert (await store.trainings.get(training_id, old.actor)).model_version == 1


async def test_the_names_of_missing_participants_are_for_the_actor_only(upgraded: str) -> None:
    old = Old()
    training = old.trainings["late"]
    with Store(upgraded) as store:
        failure = (await store.trainings.get(training["training_id"], old.actor)).failure
        assert failure is not None
        assert failure.missing == ("ward 1", "ward 3")
        assert failure.actor_message == training["failure_message"]
        assert "ward" not in failure.message
        payloads = await events(store, training["training_id"], old.actor)
        (extended,) = [one for one in payloads if isinstance(one, RoundExtended)]
        assert extended.deadline is not None
        # It was written as seconds, and is an instant now.
        assert extended.deadline.tzinfo is UTC
        assert timedelta(0) < extended.deadline - datetime(2026, 1, 1, tzinfo=UTC) < timedelta(hours=1)
        assert isinstance(payloads[-1], TrainingFailed)


async def test_models_are_finite_and_integers_come_from_the_heaviest(upgraded: str) -> None:
    old = Old()
    with Store(upgraded) as store:
        models = await store._database.run(lambda: [row.is_finite for row in ModelRow.select()])
        assert models == [True] * len(OLD["model"]["rows"])
        for training in old.trainings.values():
            spec = (await store.trainings.get(training["training_id"], old.actor)).spec
            assert (spec.allow_non_finite_buffers, spec.integer_tensors) == (False, IntegerTensors.HEAVIEST)
        # A stored model of the old version is trained as before.
        world = World(store)
        plain = old.trainings["plain"]["model_id"]
        assert (await world.training(old.actor, old.clients, model_id=plain)) is not None


async def test_updates_say_nothing_for_rules_and_are_the_same_when_they_are_repeated(upgraded: str) -> None:
    old = Old()
    training_id = old.trainings["plain"]["training_id"]
    with Store(upgraded) as store:
        rows = await store._database.run(lambda: list(UpdateRow.select()))
        assert {(row.local_steps, row.initial_loss, row.base_version) for row in rows} == {(None, None, None)}
        assert {row.stored is (row.sha256 is not None) for row in rows} == {True}
        (before,) = (row for row in rows if row.training_id == training_id)
        file = BlobRef(before.sha256, before.size_bytes)
        again = NewUpdate(training_id, before.number, before.user_id, file, before.num_examples, before.metrics, 5, 0.5)
        found = await store.submissions.admit(again)
        assert isinstance(found, Update)
        assert found.update_id == before.update_id


async def test_the_audit_chain_goes_on_as_the_servers(upgraded: str) -> None:
    old = Old()
    columns, rows = OLD["audit"]["columns"], OLD["audit"]["rows"]
    before = [dict(zip(columns, row, strict=True)) for row in rows]
    saved = AuditHead(before[-1]["sequence"], before[-1]["hash"])
    training_id = old.trainings["chain"]["training_id"]
    with Store(upgraded) as store:
        report = await check(store, saved)
        assert (report.head, report.entries, report.chains, report.uncovered) == (saved, len(rows), 0, 0)
        await World(store).submit(training_id, 1, old.clients[1])
        await store.audit.record_heads()
        after = await chained(store)
        report = await check(store, saved)
    assert [{name: getattr(entry, name) for name in ("sequence", "facts", "hash")} for entry in after[: len(rows)]] == [
        {name: row[name] for name in ("sequence", "facts", "hash")} for row in before
    ]
    assert [(entry.action, entry.chain, entry.sequence) for entry in after[len(rows) :]] == [
        ("chain_begun", "", saved.sequence + 1),
        ("update_accepted", training_id, 1),
        ("heads_recorded", "", saved.sequence + 2),
    ]
    assert (report.chains, report.uncovered, report.head.sequence) == (1, 0, saved.sequence + 2)


async def test_the_rest_is_as_it_was(upgraded: str) -> None:
    old = Old()
    with Store(upgraded) as store:
        plain = old.trainings["plain"]["training_id"]
        view = await store.rounds.explain(plain, None, old.actor)
        assert [(one.reason, one.count) for one in view.rejected_updates] == [("UPDATE_NOT_FINITE", 1)]
        assert (view.round.kind, view.round.arrived) == (KINDS["TRAIN"], 1)
        # Nothing was found out about updates then.
        done = await store.rounds.explain(old.trainings["swag"]["training_id"], 0, old.actor)
        assert (done.round.state, {member.report for member in done.members}) == (RoundState.DONE, {None})
        await check(store)

        def counts() -> dict[str, int]:
            tables = {"event": EventRow, "users": UserRow, "training": TrainingRow, "sighting": LastSeenRow}
            return {name: table.select().count() for name, table in tables.items()}

        found = await store._database.run(counts)
        assert found == {name: len(OLD[name]["rows"]) for name in found}
