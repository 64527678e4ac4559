"""What became of the work of participants in a round that is done."""

from fedround_server.store.tables.schema import CohortRow, ParticipantFailureRow, ParticipantRow, RoundRow, UpdateRow


def record_work(row: RoundRow) -> None:
    """Counts the members whose work was left out, and remembers who failed, until it delivers again."""
    training_id, number = row.training_id, row.number
    part = ParticipantRow.training_id == training_id
    submitted = UpdateRow.select(UpdateRow.user_id).where(
        UpdateRow.training_id == training_id, UpdateRow.number == number
    )
    failed = ParticipantFailureRow.select(ParticipantFailureRow.user_id).where(
        ParticipantFailureRow.training_id == training_id, ParticipantFailureRow.number == number
    )
    asked = CohortRow.select(CohortRow.user_id).where(
        CohortRow.training_id == training_id, CohortRow.number == number, ~CohortRow.removed
    )
    ParticipantRow.update(failed=False).where(
        part, ParticipantRow.failed, ParticipantRow.user_id.in_(submitted)
    ).execute()
    if row.failed:
        ParticipantRow.update(failed=True).where(part, ParticipantRow.user_id.in_(failed)).execute()
    if row.members > row.failed + row.arrived:
        ParticipantRow.update(rounds_left_out=ParticipantRow.rounds_left_out + 1).where(
            part,
            ParticipantRow.user_id.in_(asked),
            ParticipantRow.user_id.not_in(submitted),
            ParticipantRow.user_id.not_in(failed),
        ).execute()
