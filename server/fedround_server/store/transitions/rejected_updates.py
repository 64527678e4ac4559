"""Counts what was submitted and does not count, by reason."""

from datetime import datetime

from fedround_server.domain.rejected_update import MAX_MESSAGE
from fedround_server.store.tables.failure_schema import RejectedUpdateRow


def count_rejected(training_id: str, number: int, user_id: str, reason: str, message: str, now: datetime) -> None:
    """Counts a rejected or lost submission of a user in a round, and keeps its message as the last one."""
    table = RejectedUpdateRow
    table.insert(
        training_id=training_id,
        number=number,
        user_id=user_id,
        reason=reason,
        count=1,
        last_time=now,
        message=message[:MAX_MESSAGE],
    ).on_conflict(
        conflict_target=[table.training_id, table.number, table.user_id, table.reason],
        preserve=[table.last_time, table.message],
        update={table.count: table.count + 1},
    ).execute()
