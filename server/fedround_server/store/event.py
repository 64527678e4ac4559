"""Verbs about events: what a subscriber may read of the logs."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peewee import JOIN, ModelSelect, fn

from fedround_server.domain.errors import CursorExpired, TrainingNotFound
from fedround_server.domain.event import (
    LAST_OF_A_TRAINING,
    Event,
    RoundClosed,
    RoundStarted,
    TrainingStarted,
)
from fedround_server.store import steps
from fedround_server.store.database import Database, verb
from fedround_server.store.model import ENDED
from fedround_server.store.rows import to_event
from fedround_server.store.schema import CohortRow, EventRow, ParticipantRow, RoundRow, TrainingRow, UpdateRow
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
        """Returns what a user may read of a training, like `parts`.

        Raises:
            TrainingNotFound: The user never had a part in it.
        """
        for part in _parts(user_id, TrainingRow.training_id == training_id):
            return part
        raise TrainingNotFound(training_id)

    @verb
    def parts(self, user_id: str, training_ids: Collection[str]) -> list[Part]:
        """Returns what a user may read of trainings, also of those that it has left or that were removed.

        Raises:
            TrainingNotFound: The user never had a part in one of them.
        """
        wanted, found = sorted(training_ids), []
        for start in range(0, len(wanted), steps.BATCH):
            found += _parts(user_id, TrainingRow.training_id.in_(wanted[start : start + steps.BATCH]))
        if unknown := set(wanted) - {part.training_id for part in found}:
            raise TrainingNotFound(min(unknown))
        return found

    @verb
    def open_parts(self, user_id: str) -> list[Part]:
        """Returns what a user may read of all the trainings that it has a part in and that are not over."""
        taking_part = ParticipantRow.select(ParticipantRow.training_id).where(
            ParticipantRow.user_id == user_id, ParticipantRow.remove_time.is_null()
        )
        steered = TrainingRow.alias()
        steering = steered.select(steered.training_id).where(steered.actor_id == user_id)
        # PostgreSQL has no index for an OR of two tables.
        return _parts(
            user_id,
            TrainingRow.training_id.in_(taking_part | steering),
            TrainingRow.state.not_in(ENDED),
            TrainingRow.remove_time.is_null(),
        )

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
        rows = _view(part, user_id, max(after, part.after), top if part.until is None else min(top, part.until))
        found = [to_event(row) for row in rows.order_by(EventRow.sequence).limit(limit)]
        events = [_shown(event, part) for event in _up_to_date(found, user_id)]
        return events, events[-1].sequence if len(events) == limit else max(after, top)


def _parts(user_id: str, *conditions: Any) -> list[Part]:
    rows: Iterable[dict[str, Any]] = (
        TrainingRow.select(
            TrainingRow.training_id,
            TrainingRow.actor_id,
            TrainingRow.state,
            TrainingRow.remove_time,
            TrainingRow.last_sequence,
            ParticipantRow.after_sequence,
            ParticipantRow.until_sequence,
        )
        .join(
            ParticipantRow,
            JOIN.LEFT_OUTER,
            on=((ParticipantRow.training_id == TrainingRow.training_id) & (ParticipantRow.user_id == user_id)),
        )
        .where(*conditions, (TrainingRow.actor_id == user_id) | ParticipantRow.user_id.is_null(False))
        .dicts()  # type: ignore[assignment]  # the stubs don't know what dicts() does
    )
    return [_part(row, row["actor_id"] == user_id) for row in rows]


def _part(row: Mapping[str, Any], is_actor: bool) -> Part:
    over = row["remove_time"] is not None or row["state"] in ENDED
    return Part(
        training_id=row["training_id"],
        is_actor=is_actor,
        after=0 if is_actor else row["after_sequence"],
        until=None if is_actor else row["until_sequence"],
        last_sequence=row["last_sequence"],
        ended=over or not (is_actor or row["until_sequence"] is None),
    )


def _shown(event: Event, part: Part) -> Event:
    if part.is_actor or not isinstance(event.payload, RoundClosed):
        return event
    return replace(event, payload=event.payload.public)


def _up_to_date(found: Sequence[Event], user_id: str) -> list[Event]:
    """Has the start of a round tell how that round is now: who begins to listen may begin with it."""
    started = {event.payload.round for event in found if isinstance(event.payload, RoundStarted)}
    if not started:
        return list(found)
    mine = (
        (UpdateRow.training_id == RoundRow.training_id)
        & (UpdateRow.number == RoundRow.number)
        & (UpdateRow.user_id == user_id)
    )
    rows: Iterable[tuple[Any, ...]] = (
        RoundRow.select(RoundRow.number, RoundRow.attempt, RoundRow.deadline, UpdateRow.update_id)
        .join(UpdateRow, JOIN.LEFT_OUTER, on=mine)
        .where(RoundRow.training_id == found[0].training_id, RoundRow.number.in_(started))
        .tuples()  # type: ignore[assignment]  # the stubs don't know what tuples() does
    )
    present = {
        number: {"attempt": attempt, "deadline": deadline, "submitted": update_id is not None}
        for number, attempt, deadline, update_id in rows
    }
    return [
        replace(event, payload=replace(event.payload, **present[event.payload.round]))
        if isinstance(event.payload, RoundStarted)
        else event
        for event in found
    ]


def _view(part: Part, user_id: str, after: int, until: int | None) -> "ModelSelect[EventRow]":
    # One bound on each side: of two, SQLite may take the wider one to the index, and read all that lies between.
    rows = EventRow.select().where(EventRow.training_id == part.training_id, EventRow.sequence > after)
    if until is not None:
        rows = rows.where(EventRow.sequence <= until)
    if part.is_actor:
        return rows
    # Of each event's own round: all rounds that a user was in would take longer with each round.
    member = CohortRow.select(CohortRow.user_id).where(
        CohortRow.training_id == EventRow.training_id,
        CohortRow.number == EventRow.number,
        CohortRow.user_id == user_id,
    )
    return rows.where(EventRow.audience.in_([ALL, user_id]) | ((EventRow.audience == COHORT) & fn.EXISTS(member)))


def _snapshot(part: Part, user_id: str) -> int:
    """Returns the sequence of the event that tells where the training stands."""
    telling = (RoundStarted.__name__, TrainingStarted.__name__, "ClientRemoved", *LAST_KINDS)
    rows = _view(part, user_id, part.after, part.until)
    if part.is_actor:
        rows = rows.where(EventRow.audience.in_([ALL, COHORT]))
    row = rows.where(EventRow.kind.in_(telling)).order_by(EventRow.sequence.desc()).first()
    return 1 if row is None else int(row.sequence)
