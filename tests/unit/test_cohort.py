"""The draw of cohorts: its sizes, and its statistics over 10,000 rounds."""

import hashlib
import itertools
import uuid
from collections import Counter
from datetime import timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedround_server.domain.cohort import Cohort, draw
from fedround_server.domain.policy import (
    UNTIL_DEADLINE,
    RoundPolicy,
    Verdict,
    enough_updates,
    expected_updates,
    judge,
    waiting_time,
)

ROUNDS = 10_000
TRAINING = "11111111-1111-4111-8111-111111111111"
SECOND = timedelta(seconds=1)


def ids(count: int) -> list[str]:
    return [str(uuid.UUID(int=number)) for number in range(count)]


# The 99.9 % quantiles of the chi-square distribution by degrees of freedom.
QUANTILES = {9: 27.88, 19: 43.82}


def test_each_participant_is_drawn_equally_often() -> None:
    users, count = ids(20), 5
    drawn = Counter(user for number in range(ROUNDS) for user in draw(7, TRAINING, number, 1, users, count))
    share = count / len(users)
    # Within a round, the draws of two participants depend on each other: hence the factors.
    deviations = sum((drawn[user] - ROUNDS * share) ** 2 for user in users) / (ROUNDS * share * (1 - share))
    assert deviations * (len(users) - 1) / len(users) < QUANTILES[len(users) - 1]


def test_all_subsets_are_drawn_equally_often() -> None:
    users, count = ids(5), 2
    drawn = Counter(tuple(draw(7, TRAINING, number, 1, users, count)) for number in range(ROUNDS))
    subsets = list(itertools.combinations(users, count))
    expected = ROUNDS / len(subsets)
    assert sum((drawn[subset] - expected) ** 2 / expected for subset in subsets) < QUANTILES[len(subsets) - 1]


@pytest.mark.parametrize("other", [(1, 1), (0, 2)], ids=["the next round", "the next attempt"])
def test_draws_do_not_depend_on_each_other(other: tuple[int, int]) -> None:
    users = ids(20)
    both = Counter[tuple[str, str]]()
    for number in range(ROUNDS):
        (first,) = draw(7, TRAINING, 2 * number, 1, users, 1)
        (second,) = draw(7, TRAINING, 2 * number + other[0], other[1], users, 1)
        both[first, second] += 1
    expected = ROUNDS / len(users) ** 2
    statistic = sum((both[pair] - expected) ** 2 / expected for pair in itertools.product(users, users))
    # 399 degrees of freedom: a mean of 399, and a standard deviation of 28.2.
    assert 300 < statistic < 490


def test_a_draw_can_be_repeated_from_what_the_documentation_says() -> None:
    users = ids(50)
    numbers = {user: hashlib.sha256(f"42 {TRAINING} 3 2 {user}".encode()).hexdigest() for user in users}
    assert draw(42, TRAINING, 3, 2, users, 10) == sorted(sorted(users, key=lambda user: numbers[user])[:10])


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 1000),
    st.integers(1, 5),
    st.sets(st.uuids().map(str), max_size=60),
    st.integers(0, 70),
    st.randoms(use_true_random=False),
)
def test_a_draw_is_a_sorted_subset_that_does_not_depend_on_the_order(
    seed: int, number: int, attempt: int, users: set[str], count: int, random: Random
) -> None:
    ordered = sorted(users)
    drawn = draw(seed, TRAINING, number, attempt, ordered, count)
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= users
    assert len(drawn) == min(count, len(users))
    shuffled = list(ordered)
    random.shuffle(shuffled)
    assert draw(seed, TRAINING, number, attempt, shuffled, count) == drawn
    # Larger draws contain smaller ones: over-selection asks others in addition.
    assert set(drawn) <= set(draw(seed, TRAINING, number, attempt, ordered, count + 1))
    # Who was not drawn has no influence.
    assert draw(seed, TRAINING, number, attempt, drawn, count) == drawn


@pytest.mark.parametrize(
    ("fraction", "registered", "needed"),
    [(0.07, 100, 7), (0.1, 30, 3), (0.1, 31, 4), (1.0, 17, 17), (0.0001, 5, 1), (1 / 3, 3, 1)],
)
def test_a_fraction_is_rounded_up_from_the_decimal_number(fraction: float, registered: int, needed: int) -> None:
    assert Cohort(fraction=fraction).needed(registered) == needed


@given(st.floats(1, 100), st.integers(0, 10_000))
def test_over_selection_asks_at_least_what_is_needed(over_selection: float, needed: int) -> None:
    asked = Cohort(size=1, over_selection=over_selection).asked(needed)
    assert needed <= asked
    assert needed * over_selection <= asked * (1 + 1e-9) < needed * over_selection * (1 + 1e-9) + 1


def test_a_cohort_without_a_fraction_or_a_size_is_everybody() -> None:
    assert not Cohort(labels={"gpu": "yes"}).is_drawn
    assert Cohort(labels={"gpu": "yes"}).needed(9) == 9


@given(st.integers(0, 20), st.integers(0, 20), st.data())
def test_over_selection_closes_with_what_is_needed(members: int, min_updates: int, data: st.DataObject) -> None:
    needed = data.draw(st.integers(0, 25))
    failed = data.draw(st.integers(0, members))
    arrived = data.draw(st.integers(0, members - failed))
    policy = RoundPolicy(min_updates, SECOND)
    expected = expected_updates(policy, members, failed, needed)
    assert expected == enough_updates(policy, members, failed, needed) <= min(needed, members)
    if not min_updates:
        assert expected == min(needed, members - failed)
    verdict = judge(arrived, expected, due=False, left=members - failed - arrived)
    assert (verdict is Verdict.CLOSE) == (0 < expected <= arrived)


@given(st.integers(1, 20), st.integers(1, 20), st.booleans(), st.booleans(), st.data())
def test_a_round_that_has_enough_waits_for_those_under_way(
    members: int, min_updates: int, due: bool, waited: bool, data: st.DataObject
) -> None:
    needed = data.draw(st.none() | st.integers(1, 25))
    failed = data.draw(st.integers(0, members))
    arrived = data.draw(st.integers(0, members - failed))
    policy = RoundPolicy(min_updates, wait_after_min=SECOND)
    enough = enough_updates(policy, members, failed, needed)
    expected = expected_updates(policy, members, failed, needed)
    assert enough <= expected <= members
    left = members - failed - arrived
    verdict = judge(arrived, expected, due=due, left=left, enough=enough, waited=waited)
    most = members if needed is None else min(needed, members)
    has_all = arrived >= min(most, members - failed)
    assert (verdict is Verdict.CLOSE) == (arrived >= enough and (has_all or due or waited))
    if verdict is Verdict.FAIL:
        assert arrived < enough
        assert due or not left


def test_how_long_a_round_waits() -> None:
    policy = RoundPolicy(2, wait_after_min=5 * SECOND, wait_fraction=0.1)
    assert policy.waits_after_min
    assert waiting_time(policy, []) == 5 * SECOND
    assert waiting_time(policy, [10 * SECOND]) == 5 * SECOND
    assert waiting_time(policy, [10 * SECOND, 300 * SECOND, 100 * SECOND]) == 10 * SECOND
    assert waiting_time(RoundPolicy(2, wait_after_min=UNTIL_DEADLINE), []) is None
    assert not RoundPolicy(wait_after_min=5 * SECOND).waits_after_min
    assert not RoundPolicy(2).waits_after_min
