"""Changes of who takes part in a training."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from fedround_server.domain.event import ClientRemoved
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import TrainingFailure
from fedround_server.store.db.audit_trail import record
from fedround_server.store.db.compiled import in_array
from fedround_server.store.db.rows import save
from fedround_server.store.queries.participant import participant_ids
from fedround_server.store.queries.round import counted_updates, find_round
from fedround_server.store.tables.base import BATCH_ROWS
from fedround_server.store.tables.schema import CohortRow, ParticipantRow, TrainingRow
from fedround_server.store.transitions import contributions
from fedround_server.store.transitions.close_round import evaluate, recount
from fedround_server.store.transitions.end_training import fail
from fedround_server.store.transitions.training import append_event


def enroll(training: TrainingRow, client_ids: Iterable[str], now: datetime) -> list[str]:
    """Makes participants of those that are none yet, and returns them."""
    new = sorted(set(client_ids) - set(participant_ids(training.training_id)))
    rows = [
        {
            "training_id": training.training_id,
            "user_id": user_id,
            "register_time": now,
            "remove_time": None,
            "after_sequence": training.last_sequence,
            "until_sequence": None,
            "rounds_left_out": 0,
            "failed": False,
        }
        for user_id in new
    ]
    if rows:
        training.num_participants += len(rows)
        save(training)
    for start in range(0, len(rows), BATCH_ROWS):
        record("clients_registered", training, user_ids=new[start : start + BATCH_ROWS])
        # A client that left and comes back has a row already.
        ParticipantRow.insert_many(rows[start : start + BATCH_ROWS]).on_conflict(
            conflict_target=[ParticipantRow.training_id, ParticipantRow.user_id],
            preserve=[
                ParticipantRow.register_time,
                ParticipantRow.remove_time,
                ParticipantRow.after_sequence,
                ParticipantRow.until_sequence,
                ParticipantRow.failed,
            ],
        ).execute()
    return new


def leave(training: TrainingRow, user_ids: Sequence[str], now: datetime) -> bool:
    """Removes participants; their updates of the open round don't count. Returns whether that closed the round."""
    for user_id in sorted(user_ids):
        training.num_participants -= 1
        record("client_removed", training, subject=user_id)
        sequence = append_event(training, ClientRemoved(user_id), now, audience=user_id)
        ParticipantRow.update(remove_time=now, until_sequence=sequence).where(
            ParticipantRow.training_id == training.training_id, ParticipantRow.user_id == user_id
        ).execute()
    row = find_round(training.training_id, training.round)
    if row is not None and row.state == RoundState.PENDING.value and not training.num_participants:
        fail(training, TrainingFailure("NO_PARTICIPANTS", "no participants are left"), now)
    if row is None or row.state != RoundState.OPEN.value:
        return False
    theirs = [update for update in counted_updates(row.training_id, row.number) if update.user_id in set(user_ids)]
    contributions.supersede(training, theirs, "participant_removed")
    CohortRow.update(removed=True).where(
        CohortRow.training_id == training.training_id,
        CohortRow.number == row.number,
        in_array(CohortRow.user_id, user_ids),
    ).execute()
    recount(row)
    return evaluate(training, row, now)
