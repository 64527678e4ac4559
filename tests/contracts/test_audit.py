"""The audit log: every change is in it, chained, and what is done to the chain is found."""

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from aggregations import FED_AVG, fed_dc
from contracts.audits import chained, check, read_log, recorded, tamper
from contracts.world import World, blob, new_id, new_model
from fedround_client import AuditBroken, AuditEntry, AuditHead
from fedround_client.audit_chain import verify
from fedround_server.audit import main
from fedround_server.domain.audit import AuditRecord, acting
from fedround_server.domain.errors import ModelNotFound, StoreUnavailable, UserExists
from fedround_server.domain.limits import Quotas
from fedround_server.domain.policy import RoundPolicy
from fedround_server.domain.token import Token
from fedround_server.domain.training import Evaluation
from fedround_server.domain.uncertainty import Swag
from fedround_server.domain.user import Role, User, UserView
from fedround_server.store import Store
from fedround_server.store.db.connection import reading
from fedround_server.store.tables.audit_schema import AuditHeadRow, AuditRow
from fedround_server.store.tables.schema import UserRow


async def test_a_training_is_recorded_from_its_model_to_its_end(store: Store, world: World) -> None:
    _, (one, two), training = await world.running(2, target_num_updates=1)
    await world.submit(training.training_id, 0, one, num_examples=10)
    await world.submit(training.training_id, 0, two, num_examples=30)
    await world.commit(training.training_id, "made")
    entries = await chained(store)
    assert [entry.action for entry in entries] == [
        *["user_created"] * 3,
        "model_created",
        "chain_begun",
        "training_created",
        "clients_registered",
        "training_started",
        "round_opened",
        *["update_accepted"] * 2,
        "round_closed",
        "updates_counted",
        "round_done",
        "version_made",
        "training_completed",
    ]
    (counted,) = await recorded(store, "updates_counted")
    assert [(update["participant_id"], update["num_examples"], update["weight"]) for update in counted["updates"]] == [
        (one, 10, "10/40"),
        (two, 30, "30/40"),
    ]
    (made,) = await recorded(store, "version_made")
    assert (made["subject"], made["sha256"], made["algorithm"]) == ("1", blob("made").sha256, "fed_avg")
    assert {entry.training_id for entry in entries[4:]} == {training.training_id}
    assert {entry.chain for entry in entries[5:]} == {training.training_id}
    assert {entry.chain for entry in entries[:5]} == {""}
    assert {entry.model_id for entry in entries[5:]} == {training.model_id}
    report = await check(store)
    assert (report.updates, report.counted, report.waiting, report.versions) == (2, 2, 0, 1)


async def test_every_kind_of_training_leaves_a_chain_that_holds(store: Store, world: World) -> None:
    for spec in (
        {"metric_names": ("loss",), "evaluation": Evaluation.EVERY_ROUND},
        {"aggregation": fed_dc(daisy_period=1, aggregation_period=2, seed=0)},
        {"uncertainty": Swag(samples=1, rank=1, every=1)},
        {"keep_versions": 1},
    ):
        actor, users, training = await world.running(2, **spec)
        while not (training := await store.trainings.get(training.training_id, actor)).state.is_ended:
            for user in users:
                if spec.get("metric_names") and training.round % 2:
                    await world.report(training.training_id, training.round, user, 5, loss=1.0)
                else:
                    await world.submit(training.training_id, training.round, user)
            await commit(world, training.training_id)
    report = await check(store)
    assert report.waiting == report.superseded == 0
    assert report.versions == 8
    assert len(await recorded(store, "posterior_made")) == 2
    assert len(await recorded(store, "version_dropped")) == 2
    weights = [
        update["weight"] for counted in await recorded(store, "updates_counted") for update in counted["updates"]
    ]
    assert weights.count("") == 4


async def commit(world: World, training_id: str) -> None:
    """Commits the closed round, with a file if its kind makes one."""
    rounds = world.store.rounds
    task = await rounds.find_aggregation(training_id)
    assert task is not None
    result = None if task.computation is None else blob(f"{training_id} {task.round.number}")
    assert await rounds.commit(training_id, task.round.number, task.round.epoch, result, world.now)


async def test_what_does_not_count_is_superseded_with_a_reason(store: Store, world: World) -> None:
    actor, (gone, stays), training = await world.running(2, round_policy=RoundPolicy(deadline=timedelta(hours=1)))
    await world.submit(training.training_id, 0, gone)
    await store.trainings.remove_clients(training.training_id, actor, [gone], world.now)
    await world.submit(training.training_id, 0, stays)
    await store.trainings.remove(training.training_id, actor, force=True, now=world.now)
    assert [one["reason"] for one in await recorded(store, "updates_superseded")] == [
        "participant_removed",
        "round_abandoned",
    ]
    report = await check(store)
    assert (report.updates, report.counted, report.superseded) == (2, 0, 2)


async def test_the_caller_is_recorded_and_no_token(store: Store, world: World) -> None:
    admin = await world.user(Role.ADMIN)
    acting.set(admin)
    user = User(new_id(), "somebody", Role.CLIENT, world.now)
    first, second = (Token(blob(text).sha256, world.now) for text in ("a token", "another token"))
    await store.users.create([UserView(user, (), (first,))])
    await store.credentials.rotate(user.user_id, second, None)
    await store.credentials.set_certificate_names(user.user_id, ["somebody.example.org"])
    await store.credentials.revoke(user.user_id, second.token_hash[:8])
    await store.users.remove(user.user_id, world.now)
    entries = (await chained(store))[1:]
    assert [(entry.action, entry.user_id, entry.subject) for entry in entries] == [
        (action, admin, user.user_id)
        for action in ("user_created", "token_rotated", "certificate_names_set", "token_revoked", "user_removed")
    ]
    everything = "".join(str(entry) for entry in await chained(store))
    assert first.token_hash not in everything
    assert second.token_hash not in everything
    assert "somebody" not in everything


async def test_models_are_recorded_by_digest_and_tag(store: Store, world: World) -> None:
    owner = await world.user(Role.ACTOR)
    model = await store.models.create(new_id(), owner, new_model("weights"), Quotas(), world.now)
    await store.models.tag(model.model_id, 0, "pinned", owner, remove=False)
    await store.models.tag(model.model_id, 0, "pinned", owner, remove=True)
    await store.models.tag(model.model_id, 0, "pinned", owner, remove=True)
    await store.models.remove(model.model_id, owner, world.now)
    assert [(entry.action, entry.model_id) for entry in (await chained(store))[1:]] == [
        (action, model.model_id) for action in ("model_created", "version_tagged", "version_untagged", "model_removed")
    ]
    assert (await recorded(store, "model_created"))[0]["sha256"] == blob("weights").sha256


async def test_a_verb_that_is_denied_or_repeated_records_nothing(store: Store, world: World) -> None:
    _, (client, _), training = await world.running(2)
    await world.submit(training.training_id, 0, client)
    before = await read_log(store)
    await world.submit(training.training_id, 0, client)
    user = User(new_id(), (await store.users.get(client)).name, Role.CLIENT, world.now)
    with pytest.raises(UserExists):
        await store.users.create([UserView(user, (), (Token("a" * 64, world.now),))])
    assert await read_log(store) == before


async def test_a_verb_that_meets_another_one_is_recorded_once(store: Store, world: World) -> None:
    name = f"user {new_id()}"
    users = [User(new_id(), name, Role.CLIENT, world.now) for _ in range(4)]
    made = await asyncio.gather(
        *(store.users.create([UserView(user, (), (Token(blob(user.user_id).sha256, world.now),))]) for user in users),
        return_exceptions=True,
    )
    assert sum(one is None for one in made) == 1
    assert len(await chained(store)) == 1


async def test_verbs_in_parallel_make_one_chain(store: Store, world: World) -> None:
    actors = [await world.user(Role.ACTOR) for _ in range(4)]

    async def work(actor: str) -> None:
        acting.set(actor)
        clients = await world.users(3)
        made = await world.training(actor, clients)
        await store.trainings.start(made.training_id, actor, None, world.now)
        for number in range(2):
            await asyncio.gather(*(world.submit(made.training_id, number, client) for client in clients))
            await world.commit(made.training_id, f"{made.training_id} {number}")

    await asyncio.gather(*(asyncio.create_task(work(actor)) for actor in actors))
    report = await check(store)
    assert (report.counted, report.versions) == (4 * 2 * 3, 4 * 2)
    assert {entry.user_id for entry in await chained(store) if entry.action == "version_made"} == set(actors)


async def test_entries_are_recorded_in_the_time_of_the_store(database: str, tmp_path: Any) -> None:
    times = iter(World(None)._now + timedelta(microseconds=number) for number in range(1, 3))  # type: ignore[arg-type]
    with Store(database or tmp_path / "fedround.db", now=lambda: next(times)) as store:
        await World(store).users(2)
        first, second = await chained(store)
        assert second.time_us - first.time_us == 1
        await check(store)


async def test_a_change_without_a_record_is_found(store: Store, world: World, unrecorded: list[str]) -> None:
    user = await world.user()
    await store._database.run(lambda: UserRow.update(role="ADMIN").where(UserRow.user_id == user).execute())
    assert len(unrecorded) == 1
    assert unrecorded.pop().startswith("UPDATE")


def changed(field: str, value: Any) -> Callable[[], object]:
    return lambda: AuditRow.update(**{field: value}).where(AuditRow.sequence == 3).execute()


def swap() -> None:
    one, other = (AuditRow.get(AuditRow.sequence == sequence) for sequence in (3, 4))
    AuditRow.delete().where(AuditRow.sequence.in_([3, 4])).execute()
    one.sequence, other.sequence = 4, 3
    one.save(force_insert=True)
    other.save(force_insert=True)


def insert() -> None:
    row = AuditRow.get(AuditRow.sequence == 5)
    row.sequence = 6
    row.save(force_insert=True)
    AuditHeadRow.update(sequence=6).execute()


TAMPERING: dict[str, tuple[int, str, Callable[[], object]]] = {
    **{
        f"change {field}": (3, "it was changed", changed(field, value))
        for field, value in {
            "user_id": new_id(),
            "action": "user_removed",
            "training_id": new_id(),
            "subject": new_id(),
            "facts": '{"role":"ADMIN"}',
            "hash": "f" * 64,
        }.items()
    },
    "change previous_hash": (3, "does not follow", changed("previous_hash", "f" * 64)),
    "delete": (3, "is missing", lambda: AuditRow.delete().where(AuditRow.sequence == 3).execute()),
    "delete the first": (1, "is missing", lambda: AuditRow.delete().where(AuditRow.sequence == 1).execute()),
    "swap": (3, "does not follow", swap),
    "insert": (6, "does not follow", insert),
    "cut off": (5, "is missing", lambda: AuditRow.delete().where(AuditRow.sequence == 5).execute()),
    "forget the head": (6, "too many entries", lambda: AuditHeadRow.update(sequence=4).execute()),
}


@pytest.mark.parametrize("kind", TAMPERING)
async def test_tampering_is_found_at_the_first_wrong_entry(store: Store, world: World, kind: str) -> None:
    await world.users(5)
    await check(store)
    sequence, problem, change = TAMPERING[kind]
    await tamper(store, change)
    with pytest.raises(AuditBroken) as broken:
        await check(store)
    assert broken.value.sequence == sequence
    assert problem in broken.value.problem


async def test_a_tail_that_was_cut_off_with_its_head_is_found_with_an_anchor_only(store: Store, world: World) -> None:
    await world.users(3)
    anchor = (await check(store)).head

    def cut() -> None:
        row = AuditRow.get(AuditRow.sequence == 2)
        AuditRow.delete().where(AuditRow.sequence == 3).execute()
        AuditHeadRow.update(sequence=2, hash=row.hash).execute()

    await tamper(store, cut)
    await check(store)
    with pytest.raises(AuditBroken, match="entry 3: is missing: the log was cut off, it had 3 entries before"):
        await check(store, anchor)
    await world.users(2)
    await check(store)
    with pytest.raises(AuditBroken, match="entry 3: has another hash than the head that was recorded"):
        await check(store, anchor)


async def test_who_contributed_to_a_version(store: Store, world: World) -> None:
    actor, (one, two), training = await world.running(2)
    update, _ = await world.submit(training.training_id, 0, one, num_examples=10)
    await world.submit(training.training_id, 0, two, num_examples=30)
    await world.commit(training.training_id, "made")
    name = (await store.users.get(one)).name
    await store.users.remove(one, world.now)
    origin = await store.audit.origin(training.model_id, None, actor)
    assert (origin.version, origin.sha256, origin.training_id) == (1, blob("made").sha256, training.training_id)
    assert (origin.round, origin.aggregation, origin.num_examples) == (0, FED_AVG, 40)
    first, second = origin.contributions
    assert (first.update_id, first.user_id, first.user_name) == (update.update_id, one, name)
    assert (first.sha256, first.num_examples, first.weight) == (update.blob.sha256, 10, "10/40")
    assert (second.user_id, second.weight) == (two, "30/40")
    uploaded = await store.audit.origin(training.model_id, 0, actor)
    assert (uploaded.sha256, uploaded.contributions) == (blob("zeros").sha256, ())
    for model_id, version, owner in (
        (training.model_id, 2, actor),
        (training.model_id, None, two),
        (new_id(), None, actor),
    ):
        with pytest.raises(ModelNotFound):
            await store.audit.origin(model_id, version, owner)


async def test_the_rounds_of_a_daisy_chain_made_the_version_together(store: Store, world: World) -> None:
    aggregation = fed_dc(daisy_period=1, aggregation_period=2, seed=0)
    actor, users, training = await world.running(2, aggregation=aggregation, target_num_updates=1)
    for number in range(2):
        for user in users:
            await world.submit(training.training_id, number, user)
        await commit(world, training.training_id)
    origin = await store.audit.origin(training.model_id, 1, actor)
    assert [(one.round, one.weight) for one in origin.contributions] == [(0, ""), (0, ""), (1, "10/20"), (1, "10/20")]
    await check(store)


async def test_what_no_verb_writes_can_be_added(store: Store) -> None:
    await store.audit.add([AuditRecord("server_started", facts={"version": "1"}), AuditRecord("server_stopped")])
    assert [entry.action for entry in await chained(store)] == ["server_started", "server_stopped"]
    assert (await check(store)).head.sequence == 2


async def begin(store: Store) -> list[AuditEntry | AuditHead]:
    """Starts a training."""
    await World(store).running(2)
    return await read_log(store)


def test_the_log_is_read_from_the_database_without_a_server_and_not_written(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store(database or tmp_path / "fedround.db") as store:
        read = asyncio.run(begin(store))
    assert main(["--data-dir", str(tmp_path), "--database", database]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    items = [
        AuditHead.parse(line["head"], line["chain"]) if "head" in line else AuditEntry.from_json(line) for line in lines
    ]
    assert items == read
    report = verify(items)
    assert (report.chains, report.uncovered) == (1, 4)
    with pytest.raises(StoreUnavailable), reading(database or tmp_path / "fedround.db"):
        AuditRow.delete().execute()
