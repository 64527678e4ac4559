"""Policies of rounds and cohorts as they are stored in the spec of a training."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from fedround_server.domain.cohort import Cohort
from fedround_server.domain.policy import LateUpdates, OnFailure, OnMissed, RoundPolicy


def from_policy(policy: RoundPolicy) -> dict[str, Any]:
    """Writes when rounds close, and whom they wait for."""
    return {
        "min_updates": policy.min_updates,
        "deadline_us": _microseconds(policy.deadline),
        "late_updates": policy.late_updates.name,
        "on_missed": policy.on_missed.name,
        "max_retries": policy.max_retries,
        "on_failure": policy.on_failure.name,
        "absent_after_us": _microseconds(policy.absent_after),
        "wait_after_min_us": _microseconds(policy.wait_after_min),
        "wait_fraction": policy.wait_fraction,
    }


def to_policy(data: Mapping[str, Any]) -> RoundPolicy:
    """Reads when rounds close, and whom they wait for; what earlier versions did not store has its default."""
    return RoundPolicy(
        min_updates=data["min_updates"],
        deadline=_duration(data["deadline_us"]),
        late_updates=LateUpdates[data["late_updates"]],
        on_missed=OnMissed[data["on_missed"]],
        max_retries=data["max_retries"],
        on_failure=OnFailure[data.get("on_failure", "CONTINUE")],
        absent_after=_duration(data.get("absent_after_us")),
        wait_after_min=timedelta(microseconds=data.get("wait_after_min_us", 0)),
        wait_fraction=data.get("wait_fraction", 0.0),
    )


def from_cohort(cohort: Cohort) -> dict[str, Any]:
    """Writes who takes part in rounds."""
    return {
        "fraction": cohort.fraction,
        "size": cohort.size,
        "min_available": cohort.min_available,
        "over_selection": cohort.over_selection,
        "labels": dict(cohort.labels),
        "available_only": cohort.available_only,
        "seed": cohort.seed,
    }


def to_cohort(data: Mapping[str, Any]) -> Cohort:
    """Reads who takes part in rounds."""
    return Cohort(**data)


def _microseconds(duration: timedelta | None) -> int | None:
    return None if duration is None else duration // timedelta(microseconds=1)


def _duration(microseconds: int | None) -> timedelta | None:
    return None if microseconds is None else timedelta(microseconds=microseconds)
