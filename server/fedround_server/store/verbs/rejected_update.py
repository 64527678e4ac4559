"""Verbs about refusals."""

from dataclasses import dataclass
from datetime import datetime

from fedround_server.domain.errors import TrainingNotFound
from fedround_server.domain.rejected_update import MAX_MESSAGE
from fedround_server.store.db.run import Database, verb
from fedround_server.store.queries.round import find_round
from fedround_server.store.queries.training import find_visible, took_part
from fedround_server.store.tables.schema import RejectedUpdateRow


@dataclass(frozen=True, slots=True)
class RefusalVerbs:
    """What the store does with refusals."""

    database: Database

    @verb
    def note(self, training_id: str, number: int, user_id: str, reason: str, message: str, now: datetime) -> None:
        """Counts a refusal, if the user has, or had, a part in the training: strangers leave no trace.

        What names a round that there is not belongs to the current one: a user has a row a round and reason at most.
        """
        try:
            training = find_visible(training_id, user_id)
        except TrainingNotFound:
            return
        if not took_part(training, user_id):
            return
        row = find_round(training_id, number) or find_round(training_id, training.round)
        if row is None:
            return
        RejectedUpdateRow.insert(
            training_id=training_id,
            number=row.number,
            user_id=user_id,
            reason=reason,
            count=1,
            last_time=now,
            message=message[:MAX_MESSAGE],
        ).on_conflict(
            conflict_target=[
                RejectedUpdateRow.training_id,
                RejectedUpdateRow.number,
                RejectedUpdateRow.user_id,
                RejectedUpdateRow.reason,
            ],
            preserve=[RejectedUpdateRow.last_time, RejectedUpdateRow.message],
            update={RejectedUpdateRow.count: RejectedUpdateRow.count + 1},
        ).execute()
