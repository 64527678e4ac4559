"""Reads whole trainings."""

from collections.abc import Iterable, Sequence
from typing import Any

from peewee import ModelSelect, fn

from fedround_server.domain.training import Training
from fedround_server.store import steps
from fedround_server.store.rows import to_training
from fedround_server.store.schema import CohortRow, ParticipantRow, RoundRow, TrainingRow, UpdateRow


def load(rows: Sequence[TrainingRow], *, listed: bool = False) -> list[Training]:
    """Reads trainings with their counters and (not for lists) participants; a few queries, however many trainings."""
    ids = [row.training_id for row in rows]
    participants: dict[str, list[str]] = {training_id: [] for training_id in ids}
    for part in () if listed else _participants(ids):
        participants[part.training_id].append(part.user_id)
    present = _count_participants(ids)
    arrived, expected = _counters(ids)
    return [
        to_training(
            row,
            tuple(sorted(participants[row.training_id])),
            present.get(row.training_id, 0),
            arrived.get(row.training_id, 0),
            expected.get(row.training_id, 0),
        )
        for row in rows
    ]


def _participants(training_ids: Sequence[str]) -> "ModelSelect[ParticipantRow]":
    return ParticipantRow.select(ParticipantRow.training_id, ParticipantRow.user_id).where(
        ParticipantRow.training_id.in_(training_ids), ParticipantRow.remove_time.is_null()
    )


def _count_participants(training_ids: Sequence[str]) -> dict[str, int]:
    counts: Iterable[dict[str, Any]] = (
        ParticipantRow.select(ParticipantRow.training_id, fn.COUNT(ParticipantRow.user_id).alias("present"))
        .where(ParticipantRow.training_id.in_(training_ids), ParticipantRow.remove_time.is_null())
        .group_by(ParticipantRow.training_id)
        .dicts()  # type: ignore[assignment]  # the stubs don't know what dicts() does
    )
    return {row["training_id"]: row["present"] for row in counts}


def _counters(training_ids: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    current = (RoundRow.training_id == TrainingRow.training_id) & (RoundRow.number == TrainingRow.round)
    rounds = (
        RoundRow.select(RoundRow.training_id, RoundRow.expected)
        .join(TrainingRow, on=current)
        .where(TrainingRow.training_id.in_(training_ids))
    )
    expected = {row.training_id: row.expected for row in rounds}
    counts: Iterable[dict[str, Any]] = (
        TrainingRow.select(TrainingRow.training_id, fn.COUNT(UpdateRow.update_id).alias("arrived"))
        .join(
            UpdateRow,
            on=((UpdateRow.training_id == TrainingRow.training_id) & (UpdateRow.number == TrainingRow.round)),
        )
        .join(CohortRow, on=steps.SENT)
        .where(TrainingRow.training_id.in_(training_ids), ~CohortRow.removed)
        .group_by(TrainingRow.training_id)
        .dicts()  # type: ignore[assignment]  # the stubs don't know what dicts() does
    )
    return {row["training_id"]: row["arrived"] for row in counts}, expected
