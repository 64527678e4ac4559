"""Configurations: what each round gets, and which numbers are rejected."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedround_server.domain.config import (
    MAX_STEPS,
    Config,
    CosineSchedule,
    ExponentialSchedule,
    Schedule,
    StepSchedule,
    check,
    check_size,
    merge,
    resolve,
    size_bytes,
)
from fedround_server.domain.errors import FieldInvalid
from fedround_server.services import config as messages
from fedround_server.store.tables.config import from_config, to_config

NUMBERS = st.floats(-1e6, 1e6)
ROUNDS = st.integers(0, 10**6)
STEPS = st.dictionaries(st.integers(1, 10**6), NUMBERS, max_size=20).flatmap(
    lambda later: NUMBERS.map(lambda first: StepSchedule(((0, first), *sorted(later.items()))))
)
EXPONENTIALS = st.builds(
    ExponentialSchedule, NUMBERS, st.floats(1e-6, 1.0), st.integers(1, 1000), st.none() | st.floats(0, 1e6)
)
COSINES = st.integers(1, 10**6).flatmap(
    lambda rounds: st.builds(
        CosineSchedule, st.floats(0, 1e6), st.floats(0, 1e6), st.just(rounds), st.integers(0, rounds - 1)
    )
)
SCHEDULES = st.one_of(STEPS, EXPONENTIALS, COSINES)
PLAIN = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=50),
)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: bool(name.strip())
)
CONFIGS = st.dictionaries(NAMES, PLAIN | SCHEDULES, max_size=10)


@given(SCHEDULES, ROUNDS)
def test_a_valid_schedule_has_a_finite_value_at_all_times(schedule: Schedule, t: int) -> None:
    schedule.check("x", 10**6)
    value = schedule.at(t)
    assert isinstance(value, float)
    assert math.isfinite(value)
    assert schedule.at(t) == value


@given(STEPS, ROUNDS)
def test_a_step_is_the_last_one_that_has_begun(schedule: StepSchedule, t: int) -> None:
    assert schedule.at(t) == [value for number, value in schedule.steps if number <= t][-1]


@given(EXPONENTIALS, ROUNDS)
def test_an_exponential_is_the_product_of_its_factors(schedule: ExponentialSchedule, t: int) -> None:
    value = schedule.start * math.pow(schedule.factor, t // schedule.every)
    expected = value if schedule.minimum is None else max(value, schedule.minimum)
    assert schedule.at(t) == pytest.approx(expected, rel=1e-9, abs=0)


@given(COSINES, ROUNDS)
def test_a_cosine_follows_its_formula(schedule: CosineSchedule, t: int) -> None:
    start, end, rounds, warmup = schedule.start, schedule.end, schedule.rounds, schedule.warmup_rounds
    if t < warmup:
        expected = start * (t + 1) / (warmup + 1)
    else:
        expected = end + (start - end) * (1 + math.cos(math.pi * min(1, (t - warmup) / (rounds - warmup)))) / 2
    assert schedule.at(t) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(COSINES)
def test_a_cosine_begins_and_ends_exactly(schedule: CosineSchedule) -> None:
    assert schedule.at(schedule.warmup_rounds) == schedule.start
    assert schedule.at(schedule.rounds) == schedule.at(schedule.rounds + 10**6) == schedule.end


@given(COSINES, st.lists(ROUNDS, min_size=2, max_size=10))
def test_a_cosine_stays_between_its_ends_and_does_not_turn(schedule: CosineSchedule, times: list[int]) -> None:
    low, high = sorted((schedule.start, schedule.end))
    after = sorted(t for t in times if t >= schedule.warmup_rounds)
    values = [schedule.at(t) for t in after]
    slack = 1e-9 * max(1.0, high)
    assert all(low - slack <= value <= high + slack for value in values)
    falling = schedule.start >= schedule.end
    assert all((one - other if falling else other - one) >= -slack for one, other in pairwise(values))


def test_values_of_known_schedules() -> None:
    steps = StepSchedule(((0, 0.1), (30, 0.01), (60, 0.001)))
    assert [steps.at(t) for t in (0, 29, 30, 59, 60, 1000)] == [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    halved = ExponentialSchedule(1.0, 0.5, every=2, minimum=0.2)
    assert [halved.at(t) for t in range(8)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2]
    cosine = CosineSchedule(1.0, 0.0, rounds=6, warmup_rounds=2)
    assert [cosine.at(t) for t in range(8)] == pytest.approx(
        [1 / 3, 2 / 3, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.0, 0.0]
    )


@given(CONFIGS, ROUNDS)
def test_resolved_values_are_plain_and_keep_their_types(config: Config, t: int) -> None:
    values = resolve(config, t)
    assert list(values) == sorted(config)
    for name, value in config.items():
        if isinstance(value, Schedule):
            assert type(values[name]) is float
        else:
            assert (type(values[name]), values[name]) == (type(value), value)
    # Plain values resolve to themselves.
    assert resolve(values, t + 1) == values


@given(CONFIGS)
def test_stored_and_sent_configurations_are_the_same(config: Config) -> None:
    for copy in (to_config(from_config(config)), messages.read("x", messages.write(config))):
        assert copy == config
        assert {name: type(value) for name, value in copy.items()} == {
            name: type(value) for name, value in config.items()
        }


@given(CONFIGS)
def test_the_size_is_an_upper_bound(config: Config) -> None:
    sent = messages.write_clients({"0" * 36: config})["0" * 36]
    assert sent.ByteSize() <= size_bytes(config)


@given(CONFIGS, CONFIGS)
def test_changes_replace_and_remove_values_and_leave_the_others(config: Config, changes: Config) -> None:
    merged = merge(config, {**changes, "gone": None})
    assert merged == {name: value for name, value in {**config, **changes}.items() if name != "gone" or name in changes}


STEP = (0, 0.1)
INVALID: dict[str, tuple[Schedule, str]] = {
    "no steps": (StepSchedule(()), r"steps: has 0 steps; must have 1 to 1000"),
    "too many steps": (StepSchedule(tuple((n, 0.0) for n in range(MAX_STEPS + 1))), "has 1001 steps"),
    "a negative round": (StepSchedule(((-1, 0.1),)), r"steps\[0\].round: is -1; must be 0"),
    "no first round": (StepSchedule(((5, 0.1),)), r"steps\[0\].round: is 5; must be 0"),
    "rounds out of order": (StepSchedule((STEP, (9, 0.2), (4, 0.3))), r"steps\[2\].round: is 4; must be more than"),
    "a round twice": (StepSchedule((STEP, (4, 0.2), (4, 0.3))), r"steps\[2\].round: is 4"),
    "a step of NaN": (StepSchedule((STEP, (4, math.nan))), r"steps\[1\].value: is nan; must be a finite number"),
    "an infinite start": (ExponentialSchedule(math.inf, 0.5), "exponential.start: is inf"),
    "a factor of NaN": (ExponentialSchedule(0.1, math.nan), "exponential.factor: is nan"),
    "a factor of 0": (ExponentialSchedule(0.1, 0.0), "exponential.factor: is 0.0; must be more than 0"),
    "a negative factor": (ExponentialSchedule(0.1, -0.5), "exponential.factor: is -0.5"),
    "a negative period": (ExponentialSchedule(0.1, 0.5, -1), "exponential.every: is -1; must be >= 1"),
    "a minimum of NaN": (ExponentialSchedule(0.1, 0.5, 1, math.nan), "exponential.minimum: is nan"),
    "growth without end": (ExponentialSchedule(0.1, 10.0), "the value is infinite before the end of the training"),
    "negative growth": (ExponentialSchedule(-0.1, 10.0), "the value is infinite"),
    "an end of NaN": (CosineSchedule(0.1, math.nan, 10), "cosine.end: is nan"),
    "a start of NaN": (CosineSchedule(math.nan, 0.1, 10), "cosine.start: is nan"),
    "no rounds": (CosineSchedule(0.1, 0.0, 0), "cosine.rounds: is 0; must be >= 1"),
    "negative rounds": (CosineSchedule(0.1, 0.0, -3), "cosine.rounds: is -3"),
    "a negative warm-up": (CosineSchedule(0.1, 0.0, 10, -1), r"cosine.warmup_rounds: is -1; must be in 0..9"),
    "nothing but warm-up": (CosineSchedule(0.1, 0.0, 10, 10), r"cosine.warmup_rounds: is 10"),
}


@pytest.mark.parametrize("what", INVALID)
def test_a_schedule_that_is_not_valid_is_rejected_by_its_field(what: str) -> None:
    schedule, words = INVALID[what]
    with pytest.raises(FieldInvalid, match=words) as caught:
        check("spec.config", {"rate": schedule}, 1000)
    assert caught.value.field.startswith('spec.config["rate"].schedule.')


def test_growth_is_valid_as_long_as_the_training_ends_before() -> None:
    check("x", {"rate": ExponentialSchedule(1.0, 10.0)}, 300)
    with pytest.raises(FieldInvalid, match="infinite"):
        check("x", {"rate": ExponentialSchedule(1.0, 10.0)}, 310)
    check("x", {"rate": ExponentialSchedule(0.0, 10.0)}, 10**6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_rejected(value: float) -> None:
    with pytest.raises(FieldInvalid, match=r"double_value: is .*; must be a finite number"):
        check("x", {"rate": value}, 1)


def test_there_is_a_limit_on_values_and_on_bytes() -> None:
    check("x", dict.fromkeys(map(str, range(100)), 1), 1)
    with pytest.raises(FieldInvalid, match="has 101 values; at most 100"):
        check("x", dict.fromkeys(map(str, range(101)), 1), 1)
    everyone = {f"{number:036}": {"learning_rate": 0.1} for number in range(10_000)}
    check_size("x", {}, everyone)
    with pytest.raises(FieldInvalid, match="bytes with the values of all participants; at most 1048576"):
        check_size("x", {}, {user: {"text": "x" * 100} for user in everyone})
