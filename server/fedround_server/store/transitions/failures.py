"""Which members an open round does not wait for."""

from datetime import datetime

from fedround_server.domain.event import ParticipantFailed
from fedround_server.domain.policy import expected_updates
from fedround_server.domain.rounds import KINDS
from fedround_server.store.db.audit_trail import record
from fedround_server.store.db.rows import save
from fedround_server.store.queries.user import user_names
from fedround_server.store.tables.failure_schema import ParticipantFailureRow
from fedround_server.store.tables.mapping import to_spec
from fedround_server.store.tables.schema import ACTOR, RoundRow, TrainingRow
from fedround_server.store.transitions.training import append_event


def add_failure(training: TrainingRow, row: RoundRow, user_id: str, reason: str, message: str, now: datetime) -> None:
    """Records that a present member of an open round, which has not submitted and not failed, does not deliver."""
    ParticipantFailureRow.create(
        training_id=row.training_id,
        number=row.number,
        user_id=user_id,
        reason=reason,
        message=message,
        fail_time=now,
    )
    _change_count(training, row, 1)
    record("participant_failed", training, subject=user_id, round=row.number, reason=reason)
    name = user_names([user_id])[user_id]
    failed = ParticipantFailed(row.number, user_id, name, reason, message, row.arrived, row.expected)
    append_event(training, failed, now, audience=ACTOR)


def withdraw_failure(training: TrainingRow, row: RoundRow, user_id: str) -> None:
    """Removes the failure of a member of an open round, if it has one: the member does deliver."""
    removed = (
        ParticipantFailureRow.delete()
        .where(
            ParticipantFailureRow.training_id == row.training_id,
            ParticipantFailureRow.number == row.number,
            ParticipantFailureRow.user_id == user_id,
        )
        .execute()
    )
    if removed:
        _change_count(training, row, -1)
        record("failure_withdrawn", training, subject=user_id, round=row.number)


def _change_count(training: TrainingRow, row: RoundRow, change: int) -> None:
    row.failed += change
    policy = KINDS[row.kind].policy(to_spec(training.spec))
    row.expected = expected_updates(policy, row.members, row.failed, row.needed)
    save(row)
