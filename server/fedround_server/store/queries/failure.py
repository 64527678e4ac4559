"""Reads of the failures of participants."""

from collections.abc import Iterable, Mapping
from typing import Any

from fedround_server.domain.failure import ABSENT, ParticipantFailure
from fedround_server.domain.user import original_name
from fedround_server.store.tables.failure_schema import ParticipantFailureRow
from fedround_server.store.tables.schema import CohortRow, UserRow

OF_MEMBER = (
    (CohortRow.training_id == ParticipantFailureRow.training_id)
    & (CohortRow.number == ParticipantFailureRow.number)
    & (CohortRow.user_id == ParticipantFailureRow.user_id)
)
"""Joins the members of cohorts with their failures."""


def has_reported_failure(training_id: str, first: int, last: int, user_id: str) -> bool:
    """Returns whether a participant has reported a failure in one of some rounds, from the first to the last one."""
    found = ParticipantFailureRow.select(ParticipantFailureRow.number).where(
        ParticipantFailureRow.training_id == training_id,
        ParticipantFailureRow.number.between(first, last),
        ParticipantFailureRow.user_id == user_id,
        ParticipantFailureRow.reason != ABSENT,
    )
    return bool(found.exists())


def list_failures(training_id: str, number: int, limit: int | None = None) -> list[ParticipantFailure]:
    """Returns the failures of the present members of a round, in the order of their times."""
    rows: Iterable[dict[str, Any]] = (
        ParticipantFailureRow.select(ParticipantFailureRow, UserRow.name.alias("name"))
        .join(CohortRow, on=OF_MEMBER)
        .join(UserRow, on=(UserRow.user_id == ParticipantFailureRow.user_id))
        .where(
            ParticipantFailureRow.training_id == training_id,
            ParticipantFailureRow.number == number,
            ~CohortRow.removed,
        )
        .order_by(ParticipantFailureRow.fail_time, ParticipantFailureRow.user_id)
        .limit(limit)
        .dicts()  # type: ignore[assignment]  # the stubs don't know what dicts() does
    )
    return [to_failure(row["number"], row) for row in rows]


def to_failure(number: int, row: Mapping[str, Any]) -> ParticipantFailure:
    """Returns the failure in a round of a row with user_id, name, reason, message and fail_time."""
    return ParticipantFailure(
        user_id=row["user_id"],
        name=original_name(row["name"], row["user_id"]),
        round=number,
        reason=row["reason"],
        message=row["message"],
        time=row["fail_time"],
    )


def failed_users(training_id: str, number: int) -> set[str]:
    """Returns the ids of the users that have failed in a round, or were absent."""
    rows = ParticipantFailureRow.select(ParticipantFailureRow.user_id).where(
        ParticipantFailureRow.training_id == training_id, ParticipantFailureRow.number == number
    )
    return {row.user_id for row in rows}
