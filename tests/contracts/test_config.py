"""The configuration of rounds: who gets what, from when on, and what is recorded; on both databases."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from contracts.audits import recorded
from contracts.world import SPEC, World, new_id
from fedround_server.domain.audit import to_json
from fedround_server.domain.config import Changes, Config, StepSchedule, Value
from fedround_server.domain.errors import FieldInvalid, NotActor, TrainingNotRunning, UnknownClients
from fedround_server.domain.event import ConfigUpdated, Event, RoundStarted
from fedround_server.domain.policy import OnMissed, RoundPolicy
from fedround_server.domain.training import Stop, Training
from fedround_server.domain.user import Role
from fedround_server.store import Store
from fedround_server.store.tables.control_schema import ClientConfigRow, TrainingConfigRow
from fedround_server.store.tables.schema import EventRow

RATES = StepSchedule(((0, 0.1), (1, 0.01)))
COMMON: Config = {"learning_rate": RATES, "epochs": 2, "loss": "huber", "augment": True}


async def configured(
    world: World, clients: int = 2, config: Config = COMMON, own: Config | None = None
) -> tuple[str, list[str], Training]:
    """A running training; the first client has a configuration of its own."""
    actor, users = await world.user(Role.ACTOR), await world.users(clients)
    client_config = {users[0]: {"epochs": 5, "site": "first"} if own is None else own}
    spec = replace(SPEC, client_ids=tuple(users), config=config, client_config=client_config, metric_names=("loss",))
    made = await world.create(actor, spec)
    return actor, users, await world.store.trainings.start(made.training_id, actor, None, world.now)


async def given(store: Store, training_id: str, user: str, after: int | None = 0) -> dict[int, Mapping[str, Value]]:
    """What a user got in each round."""
    page = await store.events.poll(training_id, user, after, 1000)
    return {
        event.payload.round: event.payload.config for event in page.events if isinstance(event.payload, RoundStarted)
    }


async def change(
    world: World,
    training: Training,
    changes: Changes,
    clients: Mapping[str, Changes] | None = None,
    request: str | None = None,
) -> Training:
    return await world.store.control.update_config(
        training.training_id, training.actor_id, changes, clients or {}, request, world.now
    )


async def go(world: World, training: Training, clients: list[str], rounds: range) -> None:
    """Runs rounds to their ends; every second one is an evaluation."""
    for number in rounds:
        for client in clients:
            if number % 2:
                await world.report(training.training_id, number, client, 1, loss=1.0)
            else:
                await world.submit(training.training_id, number, client)
        await world.commit(training.training_id)


async def test_each_participant_gets_its_own_values_and_the_actor_those_of_everybody(
    store: Store, world: World
) -> None:
    actor, clients, training = await configured(world)
    await go(world, training, clients, range(3))
    common = {"augment": True, "epochs": 2, "learning_rate": 0.1, "loss": "huber"}
    # An evaluation round has the values of the version that it evaluates.
    expected = {0: common, 1: common | {"learning_rate": 0.01}, 2: common | {"learning_rate": 0.01}}
    expected[3] = expected[2]
    for user in (actor, clients[1]):
        assert await given(store, training.training_id, user) == expected
    own = {number: {**values, "epochs": 5, "site": "first"} for number, values in expected.items()}
    assert await given(store, training.training_id, clients[0]) == own
    found = (await given(store, training.training_id, clients[0]))[0]
    assert {name: type(value) for name, value in found.items()} == {
        "augment": bool,
        "epochs": int,
        "learning_rate": float,
        "loss": str,
        "site": str,
    }


async def test_the_stored_event_has_no_values_and_does_not_grow_with_the_participants(
    store: Store, world: World
) -> None:
    sizes = []
    for count in (1, 9):
        _, _, training = await configured(world, count, {"text": "words"}, {"text": "own words"})
        with store._database._transactions.begin():
            rows = EventRow.select().where(EventRow.training_id == training.training_id)
            sizes.append([len(json.dumps(row.payload)) for row in rows])
            assert "words" not in str([row.payload for row in rows])
    assert sizes[0] == sizes[1]


async def test_a_subscription_that_resumes_gets_the_same_values(store: Store, world: World) -> None:
    _, clients, training = await configured(world)
    before = await given(store, training.training_id, clients[0])
    await change(world, training, {"learning_rate": 1.0, "epochs": None}, {clients[0]: {"epochs": 7}})
    assert await given(store, training.training_id, clients[0]) == before
    assert await given(store, training.training_id, clients[0], None) == before
    await go(world, training, clients, range(2))
    later = await given(store, training.training_id, clients[0])
    assert later[0] == before[0]
    assert later[1] == {"augment": True, "epochs": 7, "learning_rate": 1.0, "loss": "huber", "site": "first"}
    assert (await given(store, training.training_id, clients[1]))[1] == {
        "augment": True,
        "learning_rate": 1.0,
        "loss": "huber",
    }


async def test_a_repeated_round_has_the_same_values_also_for_those_who_join(store: Store, world: World) -> None:
    policy = RoundPolicy(deadline=None, on_missed=OnMissed.RETRY, max_retries=3)
    actor, users = await world.user(Role.ACTOR), await world.users(2)
    spec = replace(SPEC, client_ids=tuple(users[:1]), config={"rate": 0.5}, round_policy=policy)
    made = await world.create(actor, spec)
    training = await store.trainings.start(made.training_id, actor, None, world.now)
    await store.trainings.register(training.training_id, actor, users[1:], world.now)
    await change(world, training, {"rate": 0.25}, {users[1]: {"more": 1}})
    assert not await store.rounds.judge(training.training_id, 0, due=True, now=world.now)
    for user in users:
        assert await given(store, training.training_id, user) == {0: {"rate": 0.5}}


async def test_changes_are_merged_and_apply_from_the_next_round_on(store: Store, world: World) -> None:
    actor, clients, training = await configured(world)
    changed = await change(world, training, {"epochs": 3, "loss": None}, {clients[1]: {"loss": "l1"}})
    assert changed.spec.config == {"learning_rate": RATES, "epochs": 3, "augment": True}
    assert changed.spec.client_config == {clients[0]: {"epochs": 5, "site": "first"}, clients[1]: {"loss": "l1"}}
    again = await change(world, changed, {"epochs": 4}, {clients[0]: {"epochs": None, "site": None}})
    assert again.spec.config == {"learning_rate": RATES, "epochs": 4, "augment": True}
    assert again.spec.client_config == {clients[1]: {"loss": "l1"}}
    assert (await store.trainings.get(training.training_id, actor)).spec == again.spec
    seen = await store.trainings.get(training.training_id, clients[0])
    assert (seen.spec.config, seen.spec.client_config) == (again.spec.config, {})
    (listed,) = await store.trainings.page(actor, as_actor=True, before=None, limit=10)
    assert (listed.spec.config, listed.spec.client_config) == ({}, {})
    assert list((await given(store, training.training_id, clients[1])).values())[-1]["loss"] == "huber"
    # Both changes are for round 1: the second one took the place of the first one.
    assert [entry["subject"] for entry in await recorded(store, "config_updated")] == ["1", "1"]
    for user, expected in ((actor, [ConfigUpdated(1)] * 2), (clients[0], [])):
        assert [one.payload for one in await log(store, training, user) if isinstance(one.payload, ConfigUpdated)] == (
            expected
        )


async def log(store: Store, training: Training, user: str) -> list[Event]:
    return list((await store.events.poll(training.training_id, user, 0, 1000)).events)


async def test_a_change_before_the_start_is_for_the_first_round(store: Store, world: World) -> None:
    actor, client = await world.user(Role.ACTOR), await world.user()
    training = await world.create(actor, replace(SPEC, client_ids=(client,), config={"rate": 0.5, "epochs": 1}))
    await change(world, training, {"rate": 0.25}, {client: {"more": True}})
    await store.trainings.start(training.training_id, actor, None, world.now)
    assert await given(store, training.training_id, client) == {0: {"rate": 0.25, "epochs": 1, "more": True}}
    assert await given(store, training.training_id, actor) == {0: {"rate": 0.25, "epochs": 1}}


async def test_a_request_to_change_is_carried_out_once(store: Store, world: World) -> None:
    _, _, training = await configured(world)
    request = new_id()
    await change(world, training, {"epochs": 3}, request=request)
    await change(world, training, {"epochs": 4})
    assert (await change(world, training, {"epochs": 3}, request=request)).spec.config["epochs"] == 4
    assert len(await recorded(store, "config_updated")) == 2


async def test_the_ledger_has_what_was_given_in_each_round(store: Store, world: World) -> None:
    _, clients, training = await configured(world)
    await change(world, training, {"epochs": 3})
    await go(world, training, clients, range(1))
    first, second = await recorded(store, "round_opened")
    huber = {"sha256": hashlib.sha256(b"huber").hexdigest()}
    assert first["config"] == {"augment": True, "epochs": 2, "learning_rate": 0.1, "loss": huber}
    assert second["config"] == {"augment": True, "epochs": 3, "learning_rate": 0.01, "loss": huber}
    own = to_json({clients[0]: {"epochs": 5, "site": "first"}})
    expected = {"clients": 1, "sha256": hashlib.sha256(own.encode()).hexdigest()}
    assert first["client_config"] == second["client_config"] == expected
    (updated,) = await recorded(store, "config_updated")
    assert (updated["subject"], updated["names"], updated["clients"]) == ("1", ["epochs"], 0)


async def test_a_training_without_configuration_has_no_facts_of_it(store: Store, world: World) -> None:
    _, clients, training = await world.running(1)
    assert await given(store, training.training_id, clients[0]) == {0: {}}
    (opened,) = await recorded(store, "round_opened")
    assert not opened.keys() & {"config", "client_config"}


async def test_changes_that_are_not_valid_change_nothing(store: Store, world: World) -> None:
    actor, clients, training = await configured(world)
    before = await store.trainings.get(training.training_id, actor)
    stranger = await world.user()
    with pytest.raises(UnknownClients, match="client_config: not participants of the training") as caught:
        await change(world, training, {"epochs": 3}, {stranger: {"epochs": 1}})
    assert caught.value.field == "client_config"
    with pytest.raises(FieldInvalid, match="double_value: is nan; must be a finite number"):
        await change(world, training, {"rate": float("nan")})
    with pytest.raises(FieldInvalid, match="has 102 values; at most 100"):
        await change(world, training, {f"name {number}": 1 for number in range(98)})
    with pytest.raises(FieldInvalid, match="bytes with the values of all participants; at most 1048576"):
        await change(
            world,
            training,
            {f"name {number}": StepSchedule(tuple((n, 0.0) for n in range(1000))) for number in range(50)},
        )
    with pytest.raises(NotActor):
        await change(world, replace(training, actor_id=clients[0]), {"epochs": 3})
    assert await store.trainings.get(training.training_id, actor) == before
    await store.control.stop(training.training_id, actor, Stop.NOW, None, world.now)
    with pytest.raises(TrainingNotRunning, match="is COMPLETED: it cannot be changed"):
        await change(world, training, {"epochs": 3})


async def test_changes_before_the_next_round_take_the_place_of_each_other(store: Store, world: World) -> None:
    _, clients, training = await configured(world)
    for epochs in range(5):
        await change(world, training, {"epochs": epochs}, {clients[0]: {"epochs": epochs}})
    counts = await stored(store)
    assert counts == (2, 2)


async def stored(store: Store) -> tuple[int, int]:
    """How many configurations are stored, of trainings and of participants."""
    database = store._database
    with database._transactions.begin():
        return TrainingConfigRow.select().count(), ClientConfigRow.select().count()
