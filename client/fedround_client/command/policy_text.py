"""The round policy and the cohort of a training, in words."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.duration_pb2 import Duration

from fedround.v1.training_pb2 import ON_FAILURE_FAIL, ON_MISSED_RETRY, Cohort, RoundPolicy

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def policy_text(policy: RoundPolicy) -> str:
    """Returns when rounds close, and whom they wait for; empty if they wait for all participants without end."""
    return "; ".join(_policy(policy))


def cohort_text(cohort: Cohort) -> str:
    """Returns who takes part in each round; empty if all participants do."""
    return "; ".join(_cohort(cohort))


def _policy(policy: RoundPolicy) -> Iterator[str]:
    if policy.min_updates:
        wait = _seconds(policy.wait_after_min)
        more = f", after up to {_length(wait)} for those under way" if wait else ""
        yield f"close with {policy.min_updates} updates{more}"
    if policy.HasField("deadline"):
        then = f"repeat {policy.max_retries} times" if policy.on_missed == ON_MISSED_RETRY else "fail"
        yield f"deadline {_length(_seconds(policy.deadline))}, then {then}"
    if policy.HasField("absent_after"):
        yield f"continue without the absent after {_length(_seconds(policy.absent_after))}"
    if policy.on_failure == ON_FAILURE_FAIL:
        yield "fail with the first participant that fails"


def _cohort(cohort: Cohort) -> Iterator[str]:
    if cohort.HasField("size"):
        yield f"{cohort.size} participants"
    elif cohort.HasField("fraction"):
        yield f"{cohort.fraction:.4g} of the participants"
    if cohort.HasField("over_selection"):
        yield f"{cohort.over_selection:.4g} times as many are asked"
    if cohort.labels:
        yield "with " + ", ".join(f"{name}={value}" for name, value in sorted(cohort.labels.items()))
    if cohort.available_only:
        yield "only the connected"
    if cohort.min_available:
        yield f"once {cohort.min_available} are connected"


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _length(seconds: float) -> str:
    """Returns a length of time in the largest unit of which it is a multiple; else in seconds."""
    for size, unit in _UNITS:
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.6g} s"
