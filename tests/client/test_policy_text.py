"""The round policy and the cohort of a training, as `fedround training show` prints them."""

from google.protobuf.duration_pb2 import Duration

from fedround.v1.training_pb2 import ON_FAILURE_FAIL, ON_MISSED_RETRY, Cohort, RoundPolicy
from fedround_client.command.policy_text import cohort_text, policy_text


def test_defaults_need_no_words():
    assert policy_text(RoundPolicy()) == ""
    assert cohort_text(Cohort()) == ""


def test_policy_says_when_rounds_close_and_what_then():
    policy = RoundPolicy(
        min_updates=3,
        wait_after_min=Duration(nanos=500_000_000),
        deadline=Duration(seconds=600),
        on_missed=ON_MISSED_RETRY,
        max_retries=3,
        absent_after=Duration(seconds=90),
        on_failure=ON_FAILURE_FAIL,
    )
    assert policy_text(policy) == (
        "close with 3 updates, after up to 0.5 s for those under way; deadline 10 min, then repeat 3 times;"
        " continue without the absent after 90 s; fail with the first participant that fails"
    )


def test_missed_deadline_without_retries_fails():
    assert policy_text(RoundPolicy(deadline=Duration(seconds=7200))) == "deadline 2 h, then fail"


def test_cohort_says_who_takes_part():
    cohort = Cohort(size=10, over_selection=1.3, labels={"site": "a", "age": "old"}, available_only=True)
    assert cohort_text(cohort) == (
        "10 participants; 1.3 times as many are asked; with age=old, site=a; only the connected"
    )
    assert cohort_text(Cohort(fraction=0.25, min_available=8)) == "0.25 of the participants; once 8 are connected"
