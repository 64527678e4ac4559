"""Verbs about events: what a subscriber may read of the logs."""

from dataclasses import dataclass, replace

from peewee import ModelSelect, fn

from fedround_server.domain.errors import CursorExpired, TrainingNotFound
from fedround_server.domain.event import (
    LAST_OF_A_TRAINING,
    Event,
    RoundClosed,
    RoundStarted,
    TrainingStarted,
)
from fedround_server.store.database import Database, verb
from fedround_server.store.rows import to_event
from fedround_server.store.schema import CohortRow, EventRow, ParticipantRow, TrainingRow, UserRow
from fedround_server.store.steps import ALL, COHORT

LAST_KINDS = tuple(kind.__name__ for kind in LAST_OF_A_TRAINING)


@dataclass(frozen=True, slots=True)
class Part:
    """What a user may read of a training's log: the sequences in (after, until], and whose events.

    Attributes:
        is_actor: The actor reads everything.
        until: Where a removed participant's view ends; None while it is present.
        ended: Whether nothing will be added to the view.
    """

    training_id: str
    is_actor: bool
    after: int
    until: int | None
    last_sequence: int
    ended: bool


@dataclass(frozen=True, slots=True)
class EventVerbs:
    """What the store does with events."""

    database: Database

    @verb
    def part(self, training_id: str, user_id: str) -> Part:
        """Returns what a user may read of a training, also of one that it has left or that was removed.

        Raises:
            TrainingNotFound: The user never had a part in it.
        """
        row = TrainingRow.get_or_none(TrainingRow.training_id == training_id)
        part = None if row is None else _part(row, user_id)
        if part is None:
            raise TrainingNotFound(training_id)
        return part

    @verb
    def parts(self, user_id: str) -> list[Part]:
        """Returns what a user may read of all its trainings that are not removed."""
        mine = ParticipantRow.select(ParticipantRow.training_id).where(
            ParticipantRow.user_id == user_id, ParticipantRow.remove_time.is_null()
        )
        rows = TrainingRow.select().where(
            TrainingRow.remove_time.is_null(),
            (TrainingRow.actor_id == user_id) | TrainingRow.training_id.in_(mine),
        )
        return [part for row in rows if (part := _part(row, user_id)) is not None]

    @verb
    def start(self, part: Part, user_id: str, resume_after: int | None) -> int:
        """Returns the cursor that a subscription starts behind.

        Without a position to resume at, the subscriber gets the current round (or the end) as the log tells it.

        Raises:
            CursorExpired: The log does not reach the position.
        """
        if resume_after is not None:
            if resume_after > part.last_sequence:
                raise CursorExpired(
                    f"resume_after_sequence {resume_after} lies behind the end of the log ({part.last_sequence}) of"
                    f" the training {part.training_id}: subscribe without it to start at the current round"
                )
            return max(resume_after, part.after)
        return max(part.after, _snapshot(part, user_id) - 1)

    @verb
    def read(self, part: Part, user_id: str, after: int, limit: int) -> tuple[list[Event], int]:
        """Reads on behind a cursor.

        Returns:
            The events that the user may see, and the cursor behind everything that was looked at.
        """
        # A training's sequences are committed in order, so all up to the top can be read.
        top = EventRow.select(fn.MAX(EventRow.sequence)).where(EventRow.training_id == part.training_id).scalar() or 0
        rows = _view(part, user_id).where(EventRow.sequence > after, EventRow.sequence <= top)
        events = [_shown(to_event(row), part) for row in rows.order_by(EventRow.sequence).limit(limit)]
        return events, events[-1].sequence if len(events) == limit else max(after, top)

    @verb
    def is_present(self, user_id: str) -> bool:
        """Tells whether the user exists still."""
        return bool(UserRow.select().where(UserRow.user_id == user_id, UserRow.remove_time.is_null()).exists())


def _part(row: TrainingRow, user_id: str) -> Part | None:
    over = row.remove_time is not None
    if row.actor_id == user_id:
        return Part(row.training_id, True, 0, None, row.last_sequence, over or row.state in ("COMPLETED", "ERROR"))
    part = ParticipantRow.get_or_none(ParticipantRow.training_id == row.training_id, ParticipantRow.user_id == user_id)
    if part is None:
        return None
    return Part(
        training_id=row.training_id,
        is_actor=False,
        after=part.after_sequence,
        until=part.until_sequence,
        last_sequence=row.last_sequence,
        ended=over or part.until_sequence is not None or row.state in ("COMPLETED", "ERROR"),
    )


def _shown(event: Event, part: Part) -> Event:
    if part.is_actor or not isinstance(event.payload, RoundClosed):
        return event
    return replace(event, payload=event.payload.public)


def _view(part: Part, user_id: str) -> "ModelSelect[EventRow]":
    rows = EventRow.select().where(EventRow.training_id == part.training_id, EventRow.sequence > part.after)
    if part.is_actor:
        return rows
    rounds = CohortRow.select(CohortRow.number).where(
        CohortRow.training_id == part.training_id, CohortRow.user_id == user_id
    )
    rows = rows.where(
        EventRow.audience.in_([ALL, user_id]) | ((EventRow.audience == COHORT) & EventRow.number.in_(rounds))
    )
    return rows if part.until is None else rows.where(EventRow.sequence <= part.until)


def _snapshot(part: Part, user_id: str) -> int:
    """Returns the sequence of the event that tells where the training stands."""
    telling = (RoundStarted.__name__, TrainingStarted.__name__, "ClientRemoved", *LAST_KINDS)
    rows = _view(part, user_id)
    if part.is_actor:
        rows = rows.where(EventRow.audience.in_([ALL, COHORT]))
    row = rows.where(EventRow.kind.in_(telling)).order_by(EventRow.sequence.desc()).first()
    return 1 if row is None else int(row.sequence)
