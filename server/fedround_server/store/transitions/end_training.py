"""Ends trainings and rounds without a result."""

from datetime import datetime
from typing import Any

from fedround_server.domain.event import TrainingFailed, TrainingFinished, TrainingRemoved
from fedround_server.domain.privacy import PRIVACY_BUDGET
from fedround_server.domain.rounds.round import RoundState
from fedround_server.domain.training import TrainingFailure, TrainingState, out_of_patience
from fedround_server.store.db.audit_trail import record
from fedround_server.store.db.rows import save
from fedround_server.store.queries.privacy import is_budget_spent
from fedround_server.store.queries.round import counted_updates
from fedround_server.store.tables.mapping import to_spec
from fedround_server.store.tables.schema import RoundRow, TrainingRow
from fedround_server.store.transitions import contributions
from fedround_server.store.transitions.privacy import drop_secret
from fedround_server.store.transitions.retention import drop_abandoned
from fedround_server.store.transitions.training import append_event, move


def complete(training: TrainingRow, now: datetime) -> None:
    """Ends a training that reached its target, whose patience or privacy budget ran out, or that its actor stopped."""
    _withdraw_pending(training)
    drop_secret(training, training.model_version)
    stopped = training.stop is not None
    early = not stopped and training.model_version < training.spec["target_num_updates"]
    reason = PRIVACY_BUDGET if early and _ended_by_budget(training) else ""
    if reason:
        training.failure_reason = reason
        training.failure_message = (
            f"the privacy budget allows no further round: the model has version {training.model_version} of"
            f" {training.spec['target_num_updates']}"
        )
    facts: dict[str, Any] = {"reason": reason} if reason else {}
    record("training_completed", training, subject=training.model_version, early=early, stopped=stopped, **facts)
    training.paused = False
    move(training, TrainingState.COMPLETED, now)
    append_event(training, TrainingFinished(training.model_id, training.model_version, early, stopped, reason), now)


def _ended_by_budget(training: TrainingRow) -> bool:
    spec = to_spec(training.spec)
    if spec.aggregation.differential_privacy is None:
        return False
    patient = not out_of_patience(spec, training.model_version, training.best_version)
    return patient and is_budget_spent(training.training_id)


def fail(training: TrainingRow, failure: TrainingFailure, now: datetime) -> None:
    """Ends a training in ERROR; its updates and model versions stay."""
    abandon(training)
    drop_secret(training, training.model_version)
    training.failure_reason = failure.reason
    training.failure_message = failure.message
    training.failure_missing = list(failure.missing)
    training.paused = False
    record("training_failed", training, reason=failure.reason)
    move(training, TrainingState.ERROR, now)
    append_event(training, TrainingFailed(failure.reason, failure.message), now)


def abandon(training: TrainingRow) -> None:
    """Ends the current round without a result; an aggregation in progress will not commit."""
    if _withdraw_pending(training):
        return
    changed = (
        RoundRow.update(state=RoundState.ABANDONED.value)
        .where(
            RoundRow.training_id == training.training_id,
            RoundRow.number == training.round,
            RoundRow.state.in_([state.value for state in RoundState if not state.is_over]),
        )
        .execute()
    )
    if changed:
        contributions.supersede(training, counted_updates(training.training_id, training.round), "round_abandoned")
        record("round_abandoned", training, subject=training.round)
        drop_abandoned(training, training.round)


def _withdraw_pending(training: TrainingRow) -> bool:
    """Removes the current round if it is pending: no participant was told of it, and the one before is the last."""
    withdrawn = (
        RoundRow.delete()
        .where(
            RoundRow.training_id == training.training_id,
            RoundRow.number == training.round,
            RoundRow.state == RoundState.PENDING.value,
        )
        .execute()
    )
    if withdrawn:
        training.round = max(0, training.round - 1)
    return bool(withdrawn)


def remove(training: TrainingRow, now: datetime) -> None:
    """Removes a training in any state; its model stays."""
    abandon(training)
    drop_secret(training, training.model_version)
    record("training_removed", training)
    append_event(training, TrainingRemoved(), now)
    training.remove_time = now
    save(training)
