"""Sums of updates belong to trainings that allow relays, and are limited by the number of updates in them."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from contracts.world import SPEC, World, new_id, update
from fedround_server.aggregators.partial_sum import PartialSum
from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.errors import FieldInvalid, NumExamples
from fedround_server.domain.partial_sum import MAX_NUM_EXAMPLES
from fedround_server.domain.tensor_selection import TensorSelection
from fedround_server.store import Store
from fedround_server.store.tables.mapping import from_spec, to_spec

FLOATING = TensorSelection(trainable=("layer/*",))


async def relaying(world: World, clients: int = 2, **spec: Any) -> tuple[str, list[str], str]:
    actor, users, training = await world.running(clients, **{"allow_relays": True, "tensors": FLOATING, **spec})
    return actor, users, training.training_id


async def test_a_sum_has_as_many_examples_as_its_updates_may_have(world: World, store: Store) -> None:
    _, users, training_id = await relaying(world)
    share = MAX_NUM_EXAMPLES // 2
    for num_updates, most in ((1, 1000), (7, 7000), (2**50, share)):
        sent = replace(update(training_id, 0, users[0], "sum", most + 1), num_updates=num_updates)
        for refused in (store.submissions.admit(sent), store.submissions.submit_update(new_id(), sent, world.now)):
            with pytest.raises(NumExamples, match=f"0..{most}, not {most + 1}"):
                await refused
    accepted, _ = await world.submit(training_id, 0, users[0], "sum", share, num_updates=2**50)
    assert accepted.num_examples == share
    # The same one again.
    again, closed = await world.submit(training_id, 0, users[0], "sum", share, num_updates=2**50)
    assert (again, closed) == (accepted, False)
    _, closed = await world.submit(training_id, 0, users[1], num_examples=5)
    assert closed
    task = await store.rounds.find_aggregation(training_id)
    assert task is not None
    assert task.computation is not None
    assert task.computation.relays
    assert sorted(one.num_examples for one in task.updates) == [5, share]
    await world.commit(training_id)


async def test_other_trainings_take_no_sums(world: World) -> None:
    _, users, training_id = await relaying(world, allow_relays=False)
    with pytest.raises(FieldInvalid, match="for a partial sum, and the training takes none"):
        await world.submit(training_id, 0, users[0], num_updates=2)
    # Beside others that are accepted with it in one transaction.
    sent = [world.submit(training_id, 0, user, num_updates=number) for number, user in enumerate(users)]
    first, second = await asyncio.gather(*sent, return_exceptions=True)
    assert not isinstance(first, BaseException)
    assert isinstance(second, FieldInvalid)


async def test_no_training_starts_from_a_sum(world: World) -> None:
    spec = {"aggregation": Aggregation(PartialSum()), "target_num_updates": 1}
    actor, users, training_id = await relaying(world, 1, **spec)
    await world.submit(training_id, 0, users[0])
    await world.commit(training_id)
    model_id = (await world.store.trainings.get(training_id, actor)).model_id
    with pytest.raises(FieldInvalid, match="version 1 of it is a sum of updates"):
        await world.create(actor, replace(SPEC, model_id=model_id))
    started = await world.create(actor, replace(SPEC, model_id=model_id, model_version=0))
    assert started.model_id != model_id


def test_trainings_of_before_allow_no_relays() -> None:
    data = from_spec(SPEC)
    assert data.pop("allow_relays") is False
    assert to_spec(data) == SPEC
    spec = replace(SPEC, allow_relays=True)
    assert to_spec(json.loads(json.dumps(from_spec(spec)))) == spec
