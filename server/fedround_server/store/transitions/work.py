"""What became of the work of participants in a round that is done."""

from fedround_server.domain.rounds import KINDS
from fedround_server.store.queries.participant import failed_participants
from fedround_server.store.tables.failure_schema import ParticipantFailureRow
from fedround_server.store.tables.mapping import to_spec
from fedround_server.store.tables.schema import CohortRow, ParticipantRow, RoundRow, TrainingRow, UpdateRow


def record_work(training: TrainingRow, row: RoundRow) -> None:
    """Counts the members whose work was left out, and remembers who failed, until it delivers again.

    With buffering, work that is under way is not left out.
    """
    part = ParticipantRow.training_id == row.training_id
    submissions = (UpdateRow.training_id == row.training_id) & (UpdateRow.number == row.number)
    failures = (ParticipantFailureRow.training_id == row.training_id) & (ParticipantFailureRow.number == row.number)
    members = (CohortRow.training_id == row.training_id) & (CohortRow.number == row.number) & ~CohortRow.removed
    if failed_participants(row.training_id):
        ParticipantRow.update(failed=False).where(
            part,
            ParticipantRow.failed,
            ParticipantRow.user_id.in_(UpdateRow.select(UpdateRow.user_id).where(submissions)),
        ).execute()
    if row.failed:
        ParticipantRow.update(failed=True).where(
            part,
            ParticipantRow.user_id.in_(ParticipantFailureRow.select(ParticipantFailureRow.user_id).where(failures)),
        ).execute()
    if row.members > row.failed + row.arrived and KINDS[row.kind].buffering(to_spec(training.spec)) is None:
        ParticipantRow.update(rounds_left_out=ParticipantRow.rounds_left_out + 1).where(
            part,
            ParticipantRow.user_id.in_(CohortRow.select(CohortRow.user_id).where(members)),
            ParticipantRow.user_id.not_in(UpdateRow.select(UpdateRow.user_id).where(submissions)),
            ParticipantRow.user_id.not_in(ParticipantFailureRow.select(ParticipantFailureRow.user_id).where(failures)),
        ).execute()
