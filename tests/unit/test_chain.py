"""Daisy chaining: who goes on with whose model, and when all are averaged."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedround_server.domain.chain import averages, deal, local_rounds
from fedround_server.domain.training import Aggregation


def fed_dc(seed: int = 0, daisy_period: int = 1, aggregation_period: int = 10) -> Aggregation:
    options = {"daisy_period": daisy_period, "aggregation_period": aggregation_period, "seed": seed}
    return Aggregation("fed_dc", options)


@given(
    st.lists(st.uuids().map(str), min_size=2, max_size=30, unique=True), st.integers(0, 2**53), st.integers(0, 10**4)
)
@settings(deadline=None)
def test_everybody_gets_the_model_of_somebody_else(user_ids: list[str], seed: int, number: int) -> None:
    dealt = deal(user_ids, fed_dc(seed), number)
    assert list(dealt) == user_ids
    assert sorted(dealt.values()) == sorted(user_ids)
    assert all(source != user_id for user_id, source in dealt.items())
    assert deal(tuple(user_ids), fed_dc(seed), number) == dealt


@pytest.mark.parametrize("user_ids", [[], ["alone"]])
def test_who_is_alone_goes_on_with_the_own_model(user_ids: list[str]) -> None:
    assert deal(user_ids, fed_dc(), 0) == {user_id: user_id for user_id in user_ids}


def test_a_deal_is_the_same_on_every_machine() -> None:
    assert "".join(deal("abcdefgh", fed_dc(seed=7), 3).values()) == "fcghdbae"


# So many derangements: the subfactorial of the number of participants.
@pytest.mark.parametrize(("count", "derangements"), [(2, 1), (3, 2), (4, 9), (5, 44)])
def test_every_derangement_is_as_likely(count: int, derangements: int) -> None:
    user_ids = "abcde"[:count]
    draws = 200 * derangements
    found = Counter("".join(deal(user_ids, fed_dc(seed=1), number).values()) for number in range(draws))
    assert len(found) == derangements
    # Chi-square with derangements - 1 degrees of freedom: mean and variance are those, and twice those.
    statistic = sum((times - 200) ** 2 / 200 for times in found.values())
    freedom = derangements - 1
    assert statistic <= freedom + 4 * (2 * freedom) ** 0.5


def test_seeds_and_rounds_have_deals_of_their_own() -> None:
    user_ids = "abcdefghijklmnop"
    deals = {tuple(deal(user_ids, fed_dc(seed), number).values()) for seed in range(20) for number in range(20)}
    assert len(deals) == 400


@pytest.mark.parametrize(("daisy", "period", "steps"), [(1, 1, 1), (1, 3, 3), (2, 6, 3), (5, 10, 2)])
def test_models_are_dealt_until_they_are_averaged(daisy: int, period: int, steps: int) -> None:
    aggregation = fed_dc(daisy_period=daisy, aggregation_period=period)
    assert local_rounds(aggregation) == daisy
    assert [averages(aggregation, step) for step in range(steps)] == [False] * (steps - 1) + [True]


def test_others_average_each_round() -> None:
    assert averages(Aggregation(), 0)
    assert local_rounds(Aggregation()) == 1
