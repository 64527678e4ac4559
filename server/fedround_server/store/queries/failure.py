"""Reads of the failures of participants."""

from collections.abc import Iterable
from typing import Any

from fedround_server.domain.failure import ParticipantFailure
from fedround_server.store.tables.failure_schema import ParticipantFailureRow
from fedround_server.store.tables.schema import CohortRow, UserRow

OF_MEMBER = (
    (CohortRow.training_id == ParticipantFailureRow.training_id)
    & (CohortRow.number == ParticipantFailureRow.number)
    & (CohortRow.user_id == ParticipantFailureRow.user_id)
)
"""Joins the members of cohorts with their failures."""


def find_failure(training_id: str, number: int, user_id: str) -> ParticipantFailureRow | None:
    """Returns the failure of a participant in a round."""
    row: ParticipantFailureRow | None = ParticipantFailureRow.get_or_none(
        ParticipantFailureRow.training_id == training_id,
        ParticipantFailureRow.number == number,
        ParticipantFailureRow.user_id == user_id,
    )
    return row


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
    return [
        ParticipantFailure(
            user_id=row["user_id"],
            name=row["name"].removesuffix(f"#{row['user_id']}"),
            round=row["number"],
            reason=row["reason"],
            message=row["message"],
            time=row["fail_time"],
        )
        for row in rows
    ]


def failed_users(training_id: str, number: int) -> set[str]:
    """Returns the ids of the users that have failed in a round, or were absent."""
    rows = ParticipantFailureRow.select(ParticipantFailureRow.user_id).where(
        ParticipantFailureRow.training_id == training_id, ParticipantFailureRow.number == number
    )
    return {row.user_id for row in rows}
