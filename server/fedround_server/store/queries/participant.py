"""Reads of the participants of trainings."""

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from peewee import ModelSelect

from fedround_server.store.db.compiled import compiled, compiled_values, in_array
from fedround_server.store.tables.schema import ParticipantRow, TrainingRow, UserRow


@compiled
def _participation(training_id: str, user_id: str) -> "ModelSelect[ParticipantRow]":
    return ParticipantRow.select().where(ParticipantRow.training_id == training_id, ParticipantRow.user_id == user_id)


def find_participation(training_id: str, user_id: str) -> ParticipantRow | None:
    """Returns a user's part in a training, including one that the user has left."""
    return _participation.first(training_id, user_id)


def is_participant(training_id: str, user_id: str) -> bool:
    """Returns whether a user takes part in a training now."""
    part = find_participation(training_id, user_id)
    return part is not None and part.remove_time is None


def took_part(training: TrainingRow, user_id: str) -> bool:
    """Returns whether a user who may see a training takes, or took, part in it; its actor need not."""
    return user_id != training.actor_id or find_participation(training.training_id, user_id) is not None


def participant_ids(training_id: str) -> list[str]:
    """Returns the ids of the present participants, in canonical order."""
    rows: Iterable[tuple[str]] = present_participants(training_id, ParticipantRow.user_id).tuples()  # type: ignore[assignment]  # the stubs don't know what tuples() does
    return sorted(user_id for (user_id,) in rows)


@compiled_values
def _present(training_id: str) -> "ModelSelect[ParticipantRow]":
    return present_participants(training_id, ParticipantRow.user_id)


@compiled_values
def _labelled(training_id: str) -> "ModelSelect[ParticipantRow]":
    of_user = UserRow.user_id == ParticipantRow.user_id
    return present_participants(training_id, ParticipantRow.user_id, UserRow.labels).join(UserRow, on=of_user)


def list_eligible(training_id: str, labels: Mapping[str, str]) -> list[str]:
    """Returns the ids of the present participants whose users have all of these labels, in canonical order.

    Each round asks this, of up to thousands of participants: hence the compiled queries.
    """
    if not labels:
        return sorted(user_id for (user_id,) in _present.all(training_id))
    # Many users have the same labels.
    known: dict[str, bool] = {}
    found = []
    for user_id, text in _labelled.all(training_id):
        if text not in known:
            known[text] = labels.items() <= json.loads(text).items()
        if known[text]:
            found.append(user_id)
    return sorted(found)


def failed_participants(training_id: str) -> set[str]:
    """Returns the ids of the present participants that failed, or were absent, and have not delivered since."""
    rows = present_participants(training_id, ParticipantRow.user_id).where(ParticipantRow.failed)
    return {part.user_id for part in rows}


def former_participants(training_id: str, user_ids: Collection[str]) -> set[str]:
    """Returns those of some users that took part in a training and have left it."""
    left = ParticipantRow.select(ParticipantRow.user_id).where(
        ParticipantRow.training_id == training_id,
        in_array(ParticipantRow.user_id, user_ids),
        ParticipantRow.remove_time.is_null(False),
    )
    return {part.user_id for part in left}


def present_participants(training_id: str, *columns: Any) -> "ModelSelect[ParticipantRow]":
    """Returns a query for columns of the present participants."""
    return ParticipantRow.select(*columns).where(
        ParticipantRow.training_id == training_id, ParticipantRow.remove_time.is_null()
    )


def present_parts(user_id: str) -> "ModelSelect[ParticipantRow]":
    """Returns a query for the ids of the trainings that a user takes part in."""
    return ParticipantRow.select(ParticipantRow.training_id).where(
        ParticipantRow.user_id == user_id, ParticipantRow.remove_time.is_null()
    )
