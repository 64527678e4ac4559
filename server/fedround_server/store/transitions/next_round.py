"""Opens the round that follows one that is over, unless the training ends or is paused."""

from datetime import datetime

from fedround_server.domain.rounds import KINDS, next_kind
from fedround_server.domain.rounds.kind import Assignment, RoundKind, Sequel
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import Evaluation, out_of_patience
from fedround_server.store.queries.participant import participant_ids
from fedround_server.store.queries.privacy import is_budget_spent
from fedround_server.store.queries.round import assigned_users
from fedround_server.store.tables.mapping import to_spec
from fedround_server.store.tables.schema import RoundRow, TrainingRow
from fedround_server.store.transitions.end_training import complete
from fedround_server.store.transitions.open_round import open_round


def go_on(training: TrainingRow, row: RoundRow, now: datetime) -> None:
    """Opens the next round, or ends a training that is complete or is to be stopped.

    A training that is paused waits until it is resumed: then this is called again, with the same round.

    Args:
        training: The training.
        row: Its current round, which is over.
        now: The present time.
    """
    following = None if training.stop is not None else _following(training, row)
    if following is None:
        complete(training, now)
    elif not training.paused:
        chain = _chain(training, row)
        open_round(training, row.number + 1, following, now, chain=chain, step=row.step + 1 if chain else 0)


def _following(training: TrainingRow, row: RoundRow) -> RoundKind | None:
    """Returns the kind of the next round; None if the training is complete."""
    spec, kind = to_spec(training.spec), KINDS[row.kind]
    spent = is_budget_spent(training.training_id) if spec.aggregation.differential_privacy else False
    if row.state == RoundState.ABANDONED.value and spent and kind.sequel is Sequel.NEXT_VERSION:
        # The last version, which was not known to be the last.
        is_final = spec.evaluation is Evaluation.FINAL_ONLY
        return next_kind(spec, kind.name, training.model_version, stop=True) if is_final else None
    if row.state == RoundState.ABANDONED.value or _is_step(training, row):
        return kind
    stop = spent or out_of_patience(spec, training.model_version, training.best_version)
    return next_kind(spec, kind.name, training.model_version, stop=stop)


def _chain(training: TrainingRow, row: RoundRow) -> list[str]:
    """Returns the present participants that go on with a model that was assigned to them; without any, all restart."""
    if not _is_step(training, row):
        return []
    present = set(participant_ids(training.training_id))
    return [user_id for user_id in assigned_users(training.training_id, row.number + 1) if user_id in present]


def _is_step(training: TrainingRow, row: RoundRow) -> bool:
    """Returns whether a round that is done was a step of a chain, after which models change hands."""
    outcome = KINDS[row.kind].outcome(to_spec(training.spec), row.number, row.step, row.arrived)
    return row.state == RoundState.DONE.value and isinstance(outcome, Assignment)
