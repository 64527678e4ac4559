"""Reads whole trainings."""

from collections.abc import Sequence

from peewee import ModelSelect

from fedround_server.domain.training import Training
from fedround_server.store.rows import to_training
from fedround_server.store.schema import ParticipantRow, RoundRow, TrainingClientsRow, TrainingRow


def load(rows: Sequence[TrainingRow], *, listed: bool = False, viewer_id: str | None = None) -> list[Training]:
    """Reads trainings by a few queries, however many there are.

    Args:
        rows: The trainings.
        listed: Whether they are for a list, where nobody who takes part is named.
        viewer_id: The participant who looks: a training names this one and no other to it. None for the actor.
    """
    ids = [row.training_id for row in rows]
    clients: dict[str, list[str]] = {}
    participants: dict[str, list[str]] = {training_id: [] for training_id in ids}
    if not listed:
        for part in _participants(ids, viewer_id):
            participants[part.training_id].append(part.user_id)
        if viewer_id is None:
            named = TrainingClientsRow.select().where(TrainingClientsRow.training_id.in_(ids))
            clients = {row.training_id: row.client_ids for row in named}
    rounds = _current_rounds(ids)
    return [
        to_training(
            row,
            clients.get(row.training_id, ()),
            tuple(sorted(participants[row.training_id])),
            rounds.get(row.training_id),
        )
        for row in rows
    ]


def _participants(training_ids: Sequence[str], viewer_id: str | None) -> "ModelSelect[ParticipantRow]":
    rows = ParticipantRow.select(ParticipantRow.training_id, ParticipantRow.user_id).where(
        ParticipantRow.training_id.in_(training_ids), ParticipantRow.remove_time.is_null()
    )
    return rows if viewer_id is None else rows.where(ParticipantRow.user_id == viewer_id)


def _current_rounds(training_ids: Sequence[str]) -> dict[str, RoundRow]:
    current = (RoundRow.training_id == TrainingRow.training_id) & (RoundRow.number == TrainingRow.round)
    rows = (
        RoundRow.select(RoundRow.training_id, RoundRow.arrived, RoundRow.expected)
        .join(TrainingRow, on=current)
        .where(TrainingRow.training_id.in_(training_ids))
    )
    return {row.training_id: row for row in rows}
