"""Commits the result of a closed round, and what follows: the next round, or the end of the training."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from fedround_server.domain.aggregation import AggregationState
from fedround_server.domain.event import RoundClosed
from fedround_server.domain.model import BEST, BlobRef, VersionFile
from fedround_server.domain.report import count_not_finite
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.kind import Assignment, Evaluation, NewArtifact, NewVersion
from fedround_server.domain.shadow import ShadowResult
from fedround_server.domain.training import TrainingSpec
from fedround_server.store.queries.participant import participant_ids
from fedround_server.store.tables.mapping import from_blob, to_blob, to_spec
from fedround_server.store.tables.schema import COHORT, AssignmentRow, RoundRow, TrainingRow, UpdateRow
from fedround_server.store.transitions import contributions
from fedround_server.store.transitions.next_round import go_on
from fedround_server.store.transitions.privacy import drop_secret
from fedround_server.store.transitions.retention import drop_updates
from fedround_server.store.transitions.shadows import add_shadow_versions
from fedround_server.store.transitions.training import append_event
from fedround_server.store.transitions.versions import add_artifact, add_state, add_version, drop_versions, put_tag
from fedround_server.store.transitions.work import record_work


def commit_result(
    training: TrainingRow,
    row: RoundRow,
    updates: Sequence[UpdateRow],
    metrics: Mapping[str, float],
    result: VersionFile | None,
    now: datetime,
    state: AggregationState,
    shadows: Sequence[ShadowResult] = (),
) -> None:
    """Writes the result of a round that is done, and what follows: the next round, a pause, or the end of the training.

    The updates are those that counted, in canonical order. The result is the file that was made of them, if
    any; the state is what its aggregation leaves for the next one, and the shadows what the shadow aggregations have
    made.
    """
    spec, kind = to_spec(training.spec), KINDS[row.kind]
    outcome = kind.outcome(spec, row.number, row.step, len(updates))
    match outcome:
        case NewVersion():
            add_version(training, _made(result), now)
            add_state(training.model_id, training.model_version, state)
            add_shadow_versions(training, row, updates, shadows, now)
            drop_secret(training, training.model_version - 1)
        case NewArtifact():
            add_artifact(training.model_id, training.model_version, outcome, _whole(result))
    contributions.count(training, row, updates, spec, outcome, result, state)
    record_work(training, row)
    if isinstance(outcome, Evaluation):
        _select(training, spec, metrics)
    drop_versions(training, training.model_id)
    drop_updates(training, row, outcome)
    asked = {name: metrics[name] for name in spec.metric_names if name in metrics}
    more = {name: value for name, value in metrics.items() if name not in asked}
    not_finite = count_not_finite([update.metrics for update in updates])
    closed = RoundClosed(row.number, kind.public_name, training.model_version, len(updates), asked, more, not_finite)
    if spec.cohort is None:
        append_event(training, closed, now)
    else:
        append_event(training, closed, now, audience=COHORT, number=row.number)
    if isinstance(outcome, Assignment):
        _assign(row, outcome, updates)
    go_on(training, row, now)


def _made(result: VersionFile | None) -> VersionFile:
    if result is None:
        raise ValueError("a round that makes a file was committed without one")
    return result


def _whole(result: VersionFile | None) -> BlobRef:
    made = _made(result)
    if not isinstance(made, BlobRef):
        raise TypeError("an artifact is stored whole")
    return made


def _select(training: TrainingRow, spec: TrainingSpec, metrics: Mapping[str, float]) -> None:
    """Moves the tag `best` if the evaluated version is better than all before."""
    if spec.selection is None or spec.selection.metric not in metrics:
        return
    value = metrics[spec.selection.metric]
    if spec.selection.prefers(value, training.best_value):
        training.best_value = value
        training.best_version = training.model_version
        put_tag(training.model_id, training.model_version, BEST, training.training_id)


def _assign(row: RoundRow, outcome: Assignment, updates: Sequence[UpdateRow]) -> None:
    """Assigns the updates to the participants that submitted them and are still present."""
    present = set(participant_ids(row.training_id))
    local = {update.user_id: update for update in updates if update.user_id in present}
    for user_id, source in outcome.draw(list(local)).items():
        AssignmentRow.create(
            training_id=row.training_id,
            number=row.number + 1,
            user_id=user_id,
            **from_blob(to_blob(local[source])),
        )
