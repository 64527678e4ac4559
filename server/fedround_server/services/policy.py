"""Reads and writes RoundPolicy and Cohort messages."""

import math
import secrets
from datetime import timedelta

from fedround.v1 import training_pb2
from fedround_server.domain.cohort import Cohort
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.policy import OnFailure, OnMissed, RoundPolicy
from fedround_server.services import fields

MAX_DURATION = timedelta(days=365)
DEFAULT_RETRIES = 3
MAX_RETRIES = 1000
MAX_WAIT_FRACTION = 10
MAX_OVER_SELECTION = 100
SEED_BITS = 64
"""The size of a seed that the server draws: a participant, which knows its own draws, must not find it by trying."""


def read(path: str, message: training_pb2.RoundPolicy) -> RoundPolicy:
    """Reads a policy and fills in the defaults; the path is that of the message in the request.

    Raises:
        FieldInvalid: A field is malformed or out of range.
    """
    if message.late_updates not in (training_pb2.LATE_UPDATES_UNSPECIFIED, training_pb2.LATE_UPDATES_REJECT):
        raise FieldInvalid(f"{path}.late_updates", f"is {message.late_updates}; known is LATE_UPDATES_REJECT")
    on_missed, max_retries = _on_missed(path, message)
    return RoundPolicy(
        fields.parse_at_most(f"{path}.min_updates", message.min_updates, fields.MAX_CLIENTS),
        fields.parse_optional_duration("deadline", message, MAX_DURATION, f"{path}."),
        on_missed=on_missed,
        max_retries=max_retries,
        on_failure=_on_failure(path, message),
        absent_after=fields.parse_optional_duration("absent_after", message, MAX_DURATION, f"{path}."),
        wait_after_min=_wait_after_min(path, message),
        wait_fraction=_wait_fraction(path, message),
    )


def write(policy: RoundPolicy) -> training_pb2.RoundPolicy:
    """Writes a policy."""
    message = training_pb2.RoundPolicy(
        min_updates=policy.min_updates,
        late_updates=training_pb2.LateUpdates.Value(f"LATE_UPDATES_{policy.late_updates.value}"),
        on_missed=training_pb2.OnMissed.Value(f"ON_MISSED_{policy.on_missed.value}"),
        max_retries=policy.max_retries,
        on_failure=training_pb2.OnFailure.Value(f"ON_FAILURE_{policy.on_failure.value}"),
        wait_fraction=policy.wait_fraction,
    )
    if policy.deadline is not None:
        message.deadline.FromTimedelta(policy.deadline)
    if policy.absent_after is not None:
        message.absent_after.FromTimedelta(policy.absent_after)
    if policy.wait_after_min:
        message.wait_after_min.FromTimedelta(policy.wait_after_min)
    return message


def read_cohort(path: str, message: training_pb2.Cohort) -> Cohort:
    """Reads a cohort, and draws a seed if it has none; the path is that of the message in the request.

    Raises:
        FieldInvalid: A field is malformed or out of range, or does not go with another one.
    """
    fraction = message.fraction if message.HasField("fraction") else None
    if fraction is not None and not 0 < fraction <= 1:
        raise FieldInvalid(f"{path}.fraction", f"is {fraction}; must be more than 0, and at most 1")
    size = message.size if message.HasField("size") else None
    if size is not None and not 1 <= size <= fields.MAX_CLIENTS:
        raise FieldInvalid(f"{path}.size", f"is {size}; must be in 1..{fields.MAX_CLIENTS}")
    if fraction is not None and size is not None:
        raise FieldInvalid(f"{path}.size", f"and {path}.fraction both say how many take part: choose one")
    over_selection = message.over_selection if message.HasField("over_selection") else 1.0
    if not 1 <= over_selection <= MAX_OVER_SELECTION:
        raise FieldInvalid(
            f"{path}.over_selection", f"is {over_selection}; must be at least 1, and at most {MAX_OVER_SELECTION}"
        )
    if over_selection > 1 and fraction is None and size is None:
        raise FieldInvalid(
            f"{path}.over_selection", f"needs {path}.fraction or {path}.size: without them everybody is asked already"
        )
    return Cohort(
        fraction=fraction,
        size=size,
        min_available=fields.parse_at_most(f"{path}.min_available", message.min_available, fields.MAX_CLIENTS),
        over_selection=over_selection,
        labels=fields.parse_labels(f"{path}.labels", message.labels),
        available_only=message.available_only,
        seed=message.seed if message.HasField("seed") else secrets.randbits(SEED_BITS),
    )


def write_cohort(cohort: Cohort, *, for_actor: bool) -> training_pb2.Cohort:
    """Writes a cohort; its seed, from which all its draws follow, is for the actor."""
    return training_pb2.Cohort(
        fraction=cohort.fraction,
        size=cohort.size,
        min_available=cohort.min_available,
        over_selection=cohort.over_selection,
        labels=cohort.labels,
        available_only=cohort.available_only,
        seed=cohort.seed if for_actor else None,
    )


def _wait_after_min(path: str, message: training_pb2.RoundPolicy) -> timedelta:
    field = f"{path}.wait_after_min"
    try:
        duration = message.wait_after_min.ToTimedelta()
    except (ValueError, OverflowError):
        duration = timedelta(-1)
    if not timedelta(0) <= duration <= MAX_DURATION:
        raise FieldInvalid(field, f"must be at least 0, and at most {MAX_DURATION.days} days")
    if duration and not message.min_updates:
        raise FieldInvalid(field, f"needs {path}.min_updates: without it a round waits for everybody")
    return duration


def _wait_fraction(path: str, message: training_pb2.RoundPolicy) -> float:
    field, value = f"{path}.wait_fraction", message.wait_fraction
    if not (math.isfinite(value) and 0 <= value <= MAX_WAIT_FRACTION):
        raise FieldInvalid(field, f"is {value}; must be at least 0, and at most {MAX_WAIT_FRACTION}")
    if value and not message.min_updates:
        raise FieldInvalid(field, f"needs {path}.min_updates: without it a round waits for everybody")
    return value


def _on_failure(path: str, message: training_pb2.RoundPolicy) -> OnFailure:
    if message.on_failure not in training_pb2.OnFailure.values():
        known = ", ".join(training_pb2.OnFailure.keys())
        raise FieldInvalid(f"{path}.on_failure", f"is {message.on_failure}; known are {known}")
    return OnFailure.FAIL if message.on_failure == training_pb2.ON_FAILURE_FAIL else OnFailure.CONTINUE


def _on_missed(path: str, message: training_pb2.RoundPolicy) -> tuple[OnMissed, int]:
    if message.on_missed not in training_pb2.OnMissed.values():
        known = ", ".join(training_pb2.OnMissed.keys())
        raise FieldInvalid(f"{path}.on_missed", f"is {message.on_missed}; known are {known}")
    if message.on_missed != training_pb2.ON_MISSED_RETRY:
        if message.max_retries:
            raise FieldInvalid(f"{path}.max_retries", "goes with on_missed ON_MISSED_RETRY: set that too")
        return OnMissed.FAIL, 0
    if not message.HasField("deadline"):
        raise FieldInvalid(f"{path}.on_missed", "is ON_MISSED_RETRY, which needs a deadline: set that too")
    retries = fields.parse_at_most(f"{path}.max_retries", message.max_retries, MAX_RETRIES)
    return OnMissed.RETRY, retries or DEFAULT_RETRIES
