"""The state of SCAFFOLD and FedDyn on both databases: committed with a version, resumed, and removed with it."""

from typing import Any

import pytest

from contracts.audits import check, recorded
from contracts.test_aggregation_state import commit, one_round, state
from contracts.world import World, blob
from fedround_server.aggregators.fed_dyn import FedDyn
from fedround_server.aggregators.scaffold import Scaffold
from fedround_server.domain.aggregation import Aggregation, AggregationState
from fedround_server.domain.cohort import Cohort
from fedround_server.domain.errors import FieldInvalid, NotInCohort, RoundNotFound, TrainingNotFound
from fedround_server.store import Store

RULES = {"scaffold/c": Aggregation(Scaffold()), "fed_dyn/h": Aggregation(FedDyn())}
SCAFFOLD = RULES["scaffold/c"]


@pytest.mark.parametrize("slot", RULES)
async def test_state_is_committed_with_the_version_and_removed_with_it(store: Store, world: World, slot: str) -> None:
    actor, (client,), training = await world.running(1, target_num_updates=3, aggregation=RULES[slot], keep_versions=1)
    for number in range(3):
        await world.submit(training.training_id, number, client)
        started = await commit(world, training.training_id, state(number + 1, slot))
        assert started == (state(number, slot) if number else AggregationState())
    version = await store.models.get_version(training.model_id, 3, actor)
    assert {kind: one.blob for kind, one in version.artifacts.items()} == {slot: blob(f"{slot} 3")}
    digests = {number: blob(f"{slot} {number}").sha256 for number in (1, 2, 3)}
    assert await store.models.digests_in_use(list(digests.values())) == {digests[3]}
    assert [one["state"][slot]["steps"] for one in await recorded(store, "version_made")] == [1, 2, 3]
    await check(store)


@pytest.mark.parametrize("slot", RULES)
@pytest.mark.parametrize("version", [None, 1], ids=["latest", "older"])
async def test_another_training_goes_on_from_the_state_of_a_version(
    store: Store, world: World, slot: str, version: int | None
) -> None:
    actor, (client,), training = await world.running(1, aggregation=RULES[slot])
    for number in range(2):
        await one_round(world, training, number, client, state(number + 1, slot))
    again = await world.training(
        actor, [client], model_id=training.model_id, model_version=version, aggregation=RULES[slot]
    )
    await store.trainings.start(again.training_id, actor, None, world.now)
    await world.submit(again.training_id, 0, client)
    assert await commit(world, again.training_id, state(3, slot)) == state(version or 2, slot)


async def test_members_of_a_cohort_find_the_control_variate_of_the_version(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1, target_num_updates=3, aggregation=SCAFFOLD)
    base, none = await store.rounds.control_variate(training.training_id, 0, client)
    assert (base.model_id, base.version, none) == (training.model_id, 0, None)
    for number in range(2):
        await one_round(world, training, number, client, state(number + 1, "scaffold/c"))
    found = await store.rounds.control_variate(training.training_id, 2, client)
    assert (found[0].version, found[1]) == (2, blob("scaffold/c 2"))
    assert (await store.rounds.control_variate(training.training_id, 1, client))[1] == blob("scaffold/c 1")
    with pytest.raises(RoundNotFound):
        await store.rounds.control_variate(training.training_id, 3, client)
    with pytest.raises(TrainingNotFound):
        await store.rounds.control_variate(training.training_id, 2, actor)


@pytest.mark.parametrize("aggregation", [None, RULES["fed_dyn/h"]], ids=["fed_avg", "fed_dyn"])
async def test_other_rules_have_no_control_variate(store: Store, world: World, aggregation: Any) -> None:
    spec = {} if aggregation is None else {"aggregation": aggregation}
    _, (client,), training = await world.running(1, **spec)
    with pytest.raises(FieldInvalid, match="which has no control variate"):
        await store.rounds.control_variate(training.training_id, 0, client)


async def test_who_is_not_chosen_finds_none(store: Store, world: World) -> None:
    _, clients, training = await world.running(2, aggregation=SCAFFOLD, cohort=Cohort(size=1))
    outcomes = []
    for client in clients:
        try:
            outcomes.append((await store.rounds.control_variate(training.training_id, 0, client))[1])
        except NotInCohort:
            outcomes.append("not chosen")
    assert sorted(outcomes, key=str) == [None, "not chosen"]
