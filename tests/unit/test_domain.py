"""The rules of the domain, as properties."""

import itertools
import math
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.world import SPEC
from fedround_server.domain.policy import RETURN_TIME, RoundPolicy, Verdict, expected_updates, judge, patience
from fedround_server.domain.report import MAX_MEANS, count_not_finite, foremost, same_metrics, weighted_means
from fedround_server.domain.rounds import KINDS, next_kind
from fedround_server.domain.rounds.kind import RoundKind
from fedround_server.domain.token import hash_token, new_token
from fedround_server.domain.training import TRANSITIONS, Evaluation, TrainingFailure, TrainingState

sizes = st.integers(0, 50)


def test_every_state_is_reached_and_ends() -> None:
    reached = {TrainingState.INITIAL}
    for _ in TrainingState:
        reached |= {target for state in reached for target in TRANSITIONS[state]}
    assert reached == set(TrainingState) == set(TRANSITIONS)
    for state in TrainingState:
        assert state.is_ended == (not TRANSITIONS[state])
        assert not (state.is_running and state.is_ended)


@given(st.integers(0, 60), sizes, st.booleans(), st.booleans(), st.data())
def test_a_round_closes_when_it_has_what_it_needs(
    min_updates: int, cohort: int, due: bool, last: bool, data: st.DataObject
) -> None:
    expected = expected_updates(RoundPolicy(min_updates, timedelta(1)), cohort)
    arrived = data.draw(st.integers(0, cohort))
    assert expected <= cohort
    assert (expected == 0) == (cohort == 0)
    verdict = judge(arrived, expected, due=due, last=last)
    if cohort == 0:
        assert verdict is Verdict.FAIL
    elif arrived >= expected:
        assert verdict is Verdict.CLOSE
    else:
        missed = Verdict.FAIL if last else Verdict.REPEAT
        assert verdict is (missed if due else Verdict.WAIT)


@given(st.integers(0, 60), sizes, st.booleans(), st.booleans(), st.data())
def test_a_round_does_not_wait_for_who_failed(
    min_updates: int, cohort: int, due: bool, last: bool, data: st.DataObject
) -> None:
    failed = data.draw(st.integers(0, cohort))
    arrived = data.draw(st.integers(0, cohort - failed))
    left = cohort - failed - arrived
    expected = expected_updates(RoundPolicy(min_updates, timedelta(1)), cohort, failed)
    verdict = judge(arrived, expected, due=due, last=last, left=left)
    enough = arrived >= max(1, min(min_updates, cohort))
    if enough and (min_updates or not left):
        assert verdict is Verdict.CLOSE
    elif not left:
        assert verdict is Verdict.FAIL
    else:
        missed = Verdict.FAIL if last else Verdict.REPEAT
        assert verdict is (missed if due else Verdict.WAIT)


def test_how_long_a_round_waits_for_a_connection() -> None:
    hour = RoundPolicy(absent_after=timedelta(hours=1))
    moment = RoundPolicy(absent_after=timedelta(seconds=1))
    assert patience(RoundPolicy(), failed_before=False) is None
    assert patience(RoundPolicy(), failed_before=True) == RETURN_TIME
    assert [patience(one, failed_before=False) for one in (hour, moment)] == [hour.absent_after, moment.absent_after]
    assert [patience(one, failed_before=True) for one in (hour, moment)] == [RETURN_TIME, moment.absent_after]


@given(st.integers(1, 20), st.sampled_from(Evaluation), st.booleans())
def test_a_training_makes_its_versions_and_ends(target: int, evaluation: Evaluation, asks: bool) -> None:
    spec = replace(SPEC, target_num_updates=target, evaluation=evaluation, metric_names=("loss",) if asks else ())
    kinds: list[RoundKind] = []
    kind: RoundKind | None = KINDS["TRAIN"]
    version = 0
    while kind is not None:
        kinds.append(kind)
        version += kind is KINDS["TRAIN"]
        kind = next_kind(spec, kind.name, version)
    assert kinds.count(KINDS["TRAIN"]) == target
    evaluations = {Evaluation.EVERY_ROUND: target, Evaluation.FINAL_ONLY: 1, Evaluation.NEVER: 0}
    assert kinds.count(KINDS["EVALUATE"]) == (evaluations[evaluation] if asks else 0)
    assert all(one is not other for one, other in itertools.pairwise(kinds)) or KINDS["EVALUATE"] not in kinds[:-1]


def metric_reports(values: st.SearchStrategy[float]) -> st.SearchStrategy[list[tuple[dict[str, float], int]]]:
    metrics = st.dictionaries(st.sampled_from("abc"), values, max_size=3)
    return st.lists(st.tuples(metrics, st.integers(1, 2**31)), max_size=8)


@given(metric_reports(st.floats(-1e6, 1e6)))
def test_metrics_are_averaged_over_those_who_report_them(reports: list[tuple[dict[str, float], int]]) -> None:
    means = weighted_means(reports)
    assert means.keys() == {name for metrics, _ in reports for name in metrics}
    for name, mean in means.items():
        votes = [(Fraction(metrics[name]), weight) for metrics, weight in reports if name in metrics]
        exact = sum(value * weight for value, weight in votes) / sum(weight for _, weight in votes)
        assert mean == pytest.approx(float(exact), rel=1e-9, abs=1e-6)


@given(metric_reports(st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([1.7e308, -1.7e308])))
def test_a_mean_lies_among_its_values_however_large(reports: list[tuple[dict[str, float], int]]) -> None:
    for name, mean in weighted_means(reports).items():
        values = [metrics[name] for metrics, _ in reports if name in metrics]
        assert min(values) <= mean <= max(values)


def test_what_is_not_finite_or_has_no_examples_has_no_part_in_a_mean() -> None:
    reports = [({"a": math.nan, "b": 1.0}, 1), ({"a": 2.0, "b": math.inf, "c": -math.inf}, 3), ({"a": 9.0}, 0)]
    assert weighted_means(reports) == {"a": 2.0, "b": 1.0}
    assert count_not_finite([metrics for metrics, _ in reports]) == {"a": 1, "b": 1, "c": 1}


def test_nan_is_the_same_metric_as_nan() -> None:
    assert same_metrics({"a": math.nan}, {"a": math.nan})
    assert not same_metrics({"a": math.nan}, {"a": 1.0})
    assert not same_metrics({"a": math.nan}, {"b": math.nan})


def test_a_result_has_room_for_so_many_metrics_and_for_those_asked_for() -> None:
    names = [f"m{number:04}" for number in range(1500)]
    means = dict.fromkeys([*names, "zz"], 1.0)
    assert list(foremost(means, {"zz", "not reported"})) == [*names[: MAX_MEANS - 1], "zz"]
    assert foremost({"b": 2.0, "a": 1.0}, ()) == {"a": 1.0, "b": 2.0}


def test_tokens_are_long_and_kept_as_hashes_only() -> None:
    tokens = {new_token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(token.startswith("fr_") and len(token) >= 46 for token in tokens)
    assert len({hash_token(token) for token in tokens}) == 1000


def test_who_is_missing_is_not_public() -> None:
    failure = TrainingFailure("DEADLINE_MISSED", "1 of 2 updates", ("ward 7",))
    assert failure.message == "1 of 2 updates"
    assert failure.actor_message == "1 of 2 updates; missing: ward 7"
    failed = TrainingFailure("PARTICIPANTS_FAILED", "1 of 2 participants failed", ("ward 7 (TRAIN_FAILED)",))
    assert failed.actor_message == "1 of 2 participants failed; failed: ward 7 (TRAIN_FAILED)"
    many = TrainingFailure("DEADLINE_MISSED", "late", tuple(map(str, range(22))))
    assert many.actor_message.endswith("17, 18, 19 and 2 more")
