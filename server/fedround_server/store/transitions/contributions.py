"""The contribution ledger: what became of each accepted update."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fedround_server.aggregators import from_aggregation
from fedround_server.domain.aggregation import AggregationState
from fedround_server.domain.model import BaseAndDelta, VersionFile
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.kind import Assignment, NewArtifact, NewVersion, Outcome
from fedround_server.domain.training import TrainingSpec
from fedround_server.store.db.audit_trail import record
from fedround_server.store.tables.schema import RoundRow, TrainingRow, UpdateRow

# An entry has to fit into a message.
ENTRY_UPDATES = 1000


def accept(training: TrainingRow, update: UpdateRow) -> None:
    """Records that an update was accepted, or a report, which has no file."""
    action = "report_accepted" if update.sha256 is None else "update_accepted"
    record(
        action, training, subject=update.update_id, **_facts(update), round=update.number, size_bytes=update.size_bytes
    )


def count(
    training: TrainingRow,
    row: RoundRow,
    updates: Sequence[UpdateRow],
    spec: TrainingSpec,
    outcome: Outcome,
    result: VersionFile | None,
    state: AggregationState,
) -> None:
    """Records that a round is done, with the weight of each submission, and the version or artifact that it made.

    So are the stages of the aggregation, and the files of the state that it leaves for the next one: the one that it
    started from is recorded with the version that the round started from.

    The training has the version that it has now; the updates are those that counted, in canonical order.
    """
    total = sum(update.num_examples for update in updates)
    for some in _batches(updates):
        # An assigned update goes on as it is. Weights are exact: the average divides by their sum once, at the end.
        weights = ["" if isinstance(outcome, Assignment) else f"{update.num_examples}/{total}" for update in some]
        counted = [
            {"update_id": update.update_id, "weight": weight, **_facts(update)}
            for update, weight in zip(some, weights, strict=True)
        ]
        record("updates_counted", training, subject=row.number, updates=counted)
    facts: dict[str, Any] = {
        "kind": KINDS[row.kind].public_name,
        "num_updates": len(updates),
        "num_examples": total,
    }
    record("round_done", training, subject=row.number, **facts)
    if result is None:
        return
    made: dict[str, Any] = {"sha256": result.sha256, "size_bytes": result.size_bytes, "round": row.number, **facts}
    match outcome:
        case NewArtifact():
            record(f"{outcome.kind}_made", training, subject=training.model_version, **made)
        case NewVersion():
            # The rounds of a daisy chain made the version together.
            # Shadow aggregations have entries of their own.
            made |= {**from_aggregation(replace(spec.aggregation, shadows=())), "rounds": row.step + 1}
            if isinstance(result, BaseAndDelta):
                made |= {"base_sha256": result.base.sha256, "delta_sha256": result.delta.sha256}
            if state.slots:
                made["state"] = state.facts
            record("version_made", training, subject=training.model_version, **made)


def supersede(training: TrainingRow, updates: Sequence[UpdateRow], reason: str) -> None:
    """Records that accepted updates of the current round will not count."""
    for some in _batches(updates):
        superseded = [update.update_id for update in some]
        record("updates_superseded", training, subject=training.round, reason=reason, update_ids=superseded)


def _facts(update: UpdateRow) -> dict[str, Any]:
    facts = {"participant_id": update.user_id, "sha256": update.sha256, "num_examples": update.num_examples}
    return facts if update.base_version is None else {**facts, "base_version": update.base_version}


def _batches(updates: Sequence[UpdateRow]) -> Iterator[Sequence[UpdateRow]]:
    for start in range(0, len(updates), ENTRY_UPDATES):
        yield updates[start : start + ENTRY_UPDATES]
