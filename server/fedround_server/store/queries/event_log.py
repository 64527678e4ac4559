"""Which events of a training's log who may see: looked up for many readers at once."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from peewee import ModelSelect, Query

from fedround_server.domain.event import LAST_OF_A_TRAINING, Event, RoundClosed, RoundStarted, TrainingStarted
from fedround_server.store.db.compiled import compiled, compiled_values, in_array
from fedround_server.store.tables.mapping import to_event
from fedround_server.store.tables.schema import ALL, COHORT, CohortRow, EventRow, RoundRow, UpdateRow

PAGE = 100
END = 1 << 62
"""Behind all sequences."""
TELLING = (
    RoundStarted.__name__,
    TrainingStarted.__name__,
    "ClientRemoved",
    *(kind.__name__ for kind in LAST_OF_A_TRAINING),
)
"""The kinds of events that tell where a training stands."""


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


@dataclass(eq=False, slots=True)
class Reader:
    """Somebody who reads some events of a log.

    Attributes:
        limit: How many at the most.
        found: Those that it may see, so far; readers share the rows.
    """

    part: Part
    user_id: str
    limit: int
    found: list[EventRow] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether it has as many as it wants."""
        return len(self.found) >= self.limit

    def may_go_beyond(self, sequence: int, *, backwards: bool) -> bool:
        """Tells whether its view goes on behind (backwards: before) a sequence."""
        if backwards:
            return sequence > self.part.after + 1
        return self.part.until is None or sequence < self.part.until

    def take(self, row: EventRow) -> None:
        """Takes an event that is for it, unless it lies out of its view or there is no room."""
        part, sequence = self.part, row.sequence
        if part.after < sequence and (part.until is None or sequence <= part.until) and not self.is_full:
            self.found.append(row)


def hand_out(readers: Sequence[Reader], after: int, until: int = END, *, backwards: bool = False) -> None:
    """Gives readers those of a training's events that they may see, in order (backwards: the last one first).

    Args:
        readers: Of one training; all are its actor, or none.
        after: The sequence behind which to begin.
        until: The last sequence.
        backwards: Whether to begin at the end, and to give only what tells where the training stands.
    """
    # Often the first that is there is the one.
    size = min(PAGE, max(reader.limit for reader in readers))
    while readers:
        page = _page(readers, after, until, size, backwards=backwards)
        _give(page, readers)
        if len(page) < size:
            return
        last = page[-1].sequence
        after, until = (after, last - 1) if backwards else (last, until)
        readers = [one for one in readers if not one.is_full and one.may_go_beyond(last, backwards=backwards)]
        size = min(PAGE, 2 * size)


def _page(readers: Sequence[Reader], after: int, until: int, size: int, *, backwards: bool) -> list[EventRow]:
    part = readers[0].part
    if part.is_actor and not backwards:
        return _all.all(part.training_id, after, until, size)
    # Leaves out what none of the readers may see, or has to know.
    audiences = {ALL, COHORT} if part.is_actor else {ALL, COHORT, *(reader.user_id for reader in readers)}
    look = _telling if backwards else _for
    return look.all(part.training_id, after, until, size, audiences)


@compiled
def _all(training_id: str, after: int, until: int, size: int) -> "ModelSelect[EventRow]":
    return _between(training_id, after, until).order_by(EventRow.sequence).limit(size)


@compiled
def _for(training_id: str, after: int, until: int, size: int, audiences: Collection[str]) -> "ModelSelect[EventRow]":
    return _all.build(training_id, after, until, size).where(in_array(EventRow.audience, audiences))


@compiled
def _telling(
    training_id: str, after: int, until: int, size: int, audiences: Collection[str]
) -> "ModelSelect[EventRow]":
    rows = _between(training_id, after, until).where(EventRow.kind.in_(TELLING), in_array(EventRow.audience, audiences))
    return rows.order_by(EventRow.sequence.desc()).limit(size)


def _between(training_id: str, after: int, until: int) -> "ModelSelect[EventRow]":
    # One bound on each side: of two, SQLite may take the wider one to the index, and read all that lies between.
    return EventRow.select().where(
        EventRow.training_id == training_id, EventRow.sequence > after, EventRow.sequence <= until
    )


def tell(readers: Sequence[Reader]) -> list[list[Event]]:
    """Makes events of what readers of one training have found; those that may know the same share them."""
    is_actor = readers[0].part.is_actor
    rows = {row.sequence: row for reader in readers for row in reader.found}
    events = {sequence: _shown(to_event(row), is_actor) for sequence, row in rows.items()}
    heard = [[events[row.sequence] for row in reader.found] for reader in readers]
    started = {event.payload.round for event in events.values() if isinstance(event.payload, RoundStarted)}
    return _up_to_date(readers, heard, started) if started else heard


def _up_to_date(readers: Sequence[Reader], heard: Sequence[Sequence[Event]], started: set[int]) -> list[list[Event]]:
    """Has the start of a round tell how that round is now: who begins to listen may begin with it."""
    training_id = readers[0].part.training_id
    rounds = {row.number: row for row in _rounds.all(training_id, started)}
    submitted = set(_submitted.all(training_id, started, {reader.user_id for reader in readers}))
    made: dict[tuple[int, bool], Event] = {}

    def now(event: Event, user_id: str) -> Event:
        payload = event.payload
        if not isinstance(payload, RoundStarted):
            return event
        key = event.sequence, (payload.round, user_id) in submitted
        if key not in made:
            row = rounds[payload.round]
            fresh = replace(payload, attempt=row.attempt, deadline=row.deadline, submitted=key[1])
            made[key] = replace(event, payload=fresh)
        return made[key]

    return [[now(event, reader.user_id) for event in events] for reader, events in zip(readers, heard, strict=True)]


def _give(page: Sequence[EventRow], readers: Sequence[Reader]) -> None:
    is_actor = readers[0].part.is_actor
    by_user = defaultdict(list)
    for reader in readers:
        by_user[reader.user_id].append(reader)
    numbers = {row.number for row in page if row.audience == COHORT and row.number is not None and not is_actor}
    members = set(_members.all(page[0].training_id, numbers, by_user) if numbers else ())
    for row in page:
        if is_actor or row.audience == ALL:
            audience = readers
        elif row.audience == COHORT:
            audience = [reader for reader in readers if (row.number, reader.user_id) in members]
        else:
            audience = by_user[row.audience]
        for reader in audience:
            reader.take(row)


@compiled_values
def _members(training_id: str, numbers: Collection[int], user_ids: Collection[str]) -> Query:
    """Finds which of the users are, or were, in the cohorts of rounds."""
    return CohortRow.select(CohortRow.number, CohortRow.user_id).where(
        CohortRow.training_id == training_id, in_array(CohortRow.number, numbers), in_array(CohortRow.user_id, user_ids)
    )


@compiled_values
def _submitted(training_id: str, numbers: Collection[int], user_ids: Collection[str]) -> Query:
    """Finds which of the users have submitted in rounds."""
    return UpdateRow.select(UpdateRow.number, UpdateRow.user_id).where(
        UpdateRow.training_id == training_id, in_array(UpdateRow.number, numbers), in_array(UpdateRow.user_id, user_ids)
    )


@compiled
def _rounds(training_id: str, numbers: Collection[int]) -> "ModelSelect[RoundRow]":
    rows = RoundRow.select(RoundRow.number, RoundRow.attempt, RoundRow.deadline)
    return rows.where(RoundRow.training_id == training_id, in_array(RoundRow.number, numbers))


def _shown(event: Event, is_actor: bool) -> Event:
    if is_actor or not isinstance(event.payload, RoundClosed):
        return event
    return replace(event, payload=event.payload.public)
