"""Drops the files of updates that a training does not keep. Their rows stay, with digests and sizes."""

from collections import defaultdict
from collections.abc import Iterable

from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.kind import Assignment, Outcome
from fedround_server.domain.update import Submission
from fedround_server.store.db.audit_trail import record
from fedround_server.store.db.rows import save
from fedround_server.store.queries.round import SUBMITTED, last_round_with_updates, stored_updates
from fedround_server.store.tables.base import BATCH_ROWS
from fedround_server.store.tables.mapping import to_spec
from fedround_server.store.tables.schema import CohortRow, RoundRow, TrainingRow, UpdateRow


def drop_updates(training: TrainingRow, row: RoundRow, outcome: Outcome) -> None:
    """Drops what a training does not keep any more once a round has its result.

    That is the updates of rounds before the last ones that it keeps, and those of the round that do not count.

    Args:
        training: The training.
        row: The round.
        outcome: What it has brought. Updates that were assigned are needed until the next one has its result.
    """
    keep = to_spec(training.spec).keep_update_rounds
    if keep is None or KINDS[row.kind].submission is not Submission.UPDATE:
        return
    keep = max(keep, 1) if isinstance(outcome, Assignment) else keep
    old = stored_updates(training.training_id, UpdateRow.number < _first_kept(row, keep))
    superseded = stored_updates(training.training_id, UpdateRow.number == row.number)
    _drop(training, [*old, *superseded.join(CohortRow, on=SUBMITTED).where(CohortRow.removed)])


def drop_abandoned(training: TrainingRow, number: int) -> None:
    """Drops the updates of a round that was abandoned."""
    if to_spec(training.spec).keep_update_rounds is not None:
        _drop(training, stored_updates(training.training_id, UpdateRow.number == number))
        save(training)


def _first_kept(row: RoundRow, keep: int) -> int:
    """Returns the number of the first round whose updates are kept."""
    if not keep:
        return int(row.number) + 1
    return last_round_with_updates(row, keep - 1) or 0


def _drop(training: TrainingRow, updates: Iterable[UpdateRow]) -> None:
    dropped = {update.update_id: update for update in updates}
    rounds: dict[int, list[int]] = defaultdict(list)
    for update in dropped.values():
        rounds[update.number].append(update.size_bytes)
    for number, sizes in sorted(rounds.items()):
        record("updates_dropped", training, subject=number, num_updates=len(sizes), size_bytes=sum(sizes))
        training.stored_bytes -= sum(sizes)
    ids = list(dropped)
    for start in range(0, len(ids), BATCH_ROWS):
        UpdateRow.update(stored=False).where(UpdateRow.update_id.in_(ids[start : start + BATCH_ROWS])).execute()
