"""Verbs about refusals."""

from dataclasses import dataclass
from datetime import datetime

from fedround_server.domain.errors import TrainingNotFound
from fedround_server.domain.refusal import MAX_MESSAGE
from fedround_server.store import steps, visible
from fedround_server.store.admission import takes_part
from fedround_server.store.database import Database, verb
from fedround_server.store.schema import RefusalRow


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
            training = visible.look(training_id, user_id)
        except TrainingNotFound:
            return
        if not takes_part(training, user_id):
            return
        row = steps.find_round(training_id, number) or steps.find_round(training_id, training.round)
        if row is None:
            return
        RefusalRow.insert(
            training_id=training_id,
            number=row.number,
            user_id=user_id,
            reason=reason,
            count=1,
            last_time=now,
            message=message[:MAX_MESSAGE],
        ).on_conflict(
            conflict_target=[RefusalRow.training_id, RefusalRow.number, RefusalRow.user_id, RefusalRow.reason],
            preserve=[RefusalRow.last_time, RefusalRow.message],
            update={RefusalRow.count: RefusalRow.count + 1},
        ).execute()
