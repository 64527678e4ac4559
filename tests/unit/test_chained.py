"""Daisy chaining: who goes on with whose model, and when all are averaged."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.world import SPEC
from fedround_server.aggregators.fed_dc import FedDC
from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.rounds import KINDS, next_kind
from fedround_server.domain.rounds.chained import assign, averages
from fedround_server.domain.rounds.kind import Assignment, NewVersion


def fed_dc(seed: int = 0, daisy_period: int = 1, aggregation_period: int = 10) -> FedDC:
    return FedDC(daisy_period, aggregation_period, seed)


@given(
    st.lists(st.uuids().map(str), min_size=2, max_size=30, unique=True), st.integers(0, 2**53), st.integers(0, 10**4)
)
@settings(deadline=None)
def test_each_participant_is_assigned_the_model_of_another_one(user_ids: list[str], seed: int, number: int) -> None:
    assigned = assign(fed_dc(seed), number, user_ids)
    assert list(assigned) == user_ids
    assert sorted(assigned.values()) == sorted(user_ids)
    assert all(source != user_id for user_id, source in assigned.items())
    assert assign(fed_dc(seed), number, tuple(user_ids)) == assigned


@pytest.mark.parametrize("user_ids", [[], ["alone"]])
def test_a_single_participant_keeps_its_model(user_ids: list[str]) -> None:
    assert assign(fed_dc(), 0, user_ids) == {user_id: user_id for user_id in user_ids}


def test_an_assignment_is_the_same_on_every_machine() -> None:
    assert "".join(assign(fed_dc(seed=7), 3, "abcdefgh").values()) == "fcghdbae"


# So many derangements: the subfactorial of the number of participants.
@pytest.mark.parametrize(("count", "derangements"), [(2, 1), (3, 2), (4, 9), (5, 44)])
def test_every_derangement_is_as_likely(count: int, derangements: int) -> None:
    user_ids = "abcde"[:count]
    draws = 200 * derangements
    found = Counter("".join(assign(fed_dc(seed=1), number, user_ids).values()) for number in range(draws))
    assert len(found) == derangements
    # Chi-square with derangements - 1 degrees of freedom: mean and variance are those, and twice those.
    statistic = sum((times - 200) ** 2 / 200 for times in found.values())
    freedom = derangements - 1
    assert statistic <= freedom + 4 * (2 * freedom) ** 0.5


def test_each_seed_and_round_has_its_own_assignment() -> None:
    user_ids = "abcdefghijklmnop"
    drawn = {tuple(assign(fed_dc(seed), number, user_ids).values()) for seed in range(20) for number in range(20)}
    assert len(drawn) == 400


@pytest.mark.parametrize(("daisy", "period", "steps"), [(1, 1, 1), (1, 3, 3), (2, 6, 3), (5, 10, 2)])
def test_models_are_assigned_until_they_are_averaged(daisy: int, period: int, steps: int) -> None:
    rule = fed_dc(daisy_period=daisy, aggregation_period=period)
    assert [averages(rule, step) for step in range(steps)] == [False] * (steps - 1) + [True]
    spec, chained = replace(SPEC, aggregation=Aggregation(rule)), KINDS["CHAINED"]
    requests = [chained.request(spec, step) for step in range(steps)]
    assert [(one.local_rounds, one.assigned) for one in requests] == [(daisy, step > 0) for step in range(steps)]
    outcomes = [type(chained.outcome(spec, step, step, 2)) for step in range(steps)]
    assert outcomes == [Assignment] * (steps - 1) + [NewVersion]
    assert [chained.computation(spec, step) is None for step in range(steps)] == [True] * (steps - 1) + [False]


def test_only_fed_dc_has_chained_rounds() -> None:
    assert next_kind(SPEC, None, 0) is KINDS["TRAIN"]
    assert next_kind(replace(SPEC, aggregation=Aggregation(fed_dc())), None, 0) is KINDS["CHAINED"]
