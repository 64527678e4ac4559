"""Reads of the event logs of trainings, for many readers at once."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from peewee import ModelSelect, Query, fn

from fedround_server.domain.config import Value, resolve
from fedround_server.domain.event import LAST_OF_A_TRAINING, Event, RoundClosed, RoundStarted, TrainingStarted
from fedround_server.domain.rounds.round import RoundState
from fedround_server.store.db.compiled import compiled, compiled_values, in_array
from fedround_server.store.queries.config import find_client_config, find_config
from fedround_server.store.queries.log_view import LogView
from fedround_server.store.tables.mapping import to_event
from fedround_server.store.tables.schema import ALL, COHORT, MISSING, CohortRow, EventRow, RoundRow, UpdateRow

PAGE = 100
"""How many events are read from the database at a time."""
SITUATION = (
    RoundStarted.__name__,
    TrainingStarted.__name__,
    "ClientRemoved",
    *(kind.__name__ for kind in LAST_OF_A_TRAINING),
)
"""The kinds of events of which the last one shows the present situation of a training."""


@dataclass(frozen=True, slots=True)
class LogPage:
    """Some events of a log that a user may see, in order; the cursor is the sequence after which to read on."""

    view: LogView
    events: Sequence[Event]
    cursor: int


@dataclass(eq=False, slots=True)
class LogReader:
    """A user who reads a log after a cursor.

    Attributes:
        limit: The maximum number of events.
        found: The events that were found so far; readers share the rows.
    """

    view: LogView
    user_id: str
    cursor: int
    limit: int
    found: list[EventRow] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether the reader has as many events as it wants."""
        return len(self.found) >= self.limit

    def accept(self, row: EventRow) -> None:
        """Adds an event that the user may see, unless it lies outside of the view or the reader is full."""
        until = self.view.until
        if self.view.after < row.sequence and (until is None or row.sequence <= until) and not self.is_full:
            self.found.append(row)


def find_start(view: LogView, user_id: str) -> int:
    """Returns the cursor before the event that shows a user the present situation of a training.

    That event is the start of the current round, if the user belongs to it, or the end of the training, for example.
    """
    # Not what was added since the view was read: its cursor would lie behind the view.
    until = view.last_sequence if view.until is None else view.until
    if view.is_actor:
        row = _situation_for_actor.first(view.training_id, view.after, until)
    else:
        row = _situation_for.first(view.training_id, view.after, until, user_id)
    return max(view.after, 0 if row is None else row.sequence - 1)


def read_logs(readers: Sequence[LogReader]) -> list[LogPage]:
    """Reads on after the cursors of readers; returns a page for each."""
    # The events of a training are committed in the order of their sequences: there are no gaps up to the last one.
    ids = {reader.view.training_id for reader in readers}
    ends: dict[str, int] = {training_id: _last_sequence.all(training_id)[0][0] or 0 for training_id in ids}
    groups = defaultdict(list)
    for reader in readers:
        after = max(reader.cursor, reader.view.after)
        groups[reader.view.training_id, reader.view.is_actor, after].append(reader)
    events: dict[LogReader, list[Event]] = {}
    for (training_id, _, after), group in groups.items():
        distribute(group, after, ends[training_id])
        events.update(zip(group, decode(group), strict=True))

    def cursor(reader: LogReader) -> int:
        return reader.found[-1].sequence if reader.is_full else max(reader.cursor, ends[reader.view.training_id])

    return [LogPage(reader.view, events[reader], cursor(reader)) for reader in readers]


def distribute(readers: Sequence[LogReader], after: int, until: int) -> None:
    """Gives readers of one training the events that they may see, in order.

    Args:
        readers: Readers of one training; all are its actor, or none is.
        after: The sequence after which to begin.
        until: The last sequence.
    """
    while readers:
        rows = _page(readers, after, until)
        _give(rows, readers)
        if len(rows) < PAGE:
            return
        after = rows[-1].sequence
        readers = [one for one in readers if not one.is_full and (one.view.until is None or one.view.until > after)]


def decode(readers: Sequence[LogReader]) -> list[list[Event]]:
    """Returns the events that readers of one training have found; those that may see the same share the objects."""
    is_actor = readers[0].view.is_actor
    rows = {row.sequence: row for reader in readers for row in reader.found}
    events = {sequence: _shown(to_event(row), is_actor) for sequence, row in rows.items()}
    found = [[events[row.sequence] for row in reader.found] for reader in readers]
    started = {event.payload.round for event in events.values() if isinstance(event.payload, RoundStarted)}
    return _with_present_rounds(readers, found, started) if started else found


def _with_present_rounds(
    readers: Sequence[LogReader], found: Sequence[Sequence[Event]], started: set[int]
) -> list[list[Event]]:
    """Replaces the starts of rounds by the present state of these rounds: a subscription may begin with one."""
    training_id = readers[0].view.training_id
    rounds = {row.number: row for row in _rounds.all(training_id, started)}
    user_ids = {reader.user_id for reader in readers}
    submitted = set(_submitted.all(training_id, started, user_ids))
    # Of those that are not the actor, only members of its cohort read the start of a round.
    members = set(_members.all(training_id, started, user_ids)) if readers[0].view.is_actor else None
    configured = {
        event.payload.round
        for some in found
        for event in some
        if isinstance(event.payload, RoundStarted) and event.payload.is_configured
    }
    configs = {number: _configs(readers, rounds[number]) for number in configured}
    made: dict[tuple[int, bool, str, bool], Event] = {}

    def present(event: Event, reader: LogReader) -> Event:
        payload = event.payload
        if not isinstance(payload, RoundStarted):
            return event
        config = configs.get(payload.round, {"": {}})
        config_of = reader.user_id if reader.user_id in config else ""
        row, member = rounds[payload.round], (payload.round, reader.user_id)
        is_missing = member not in submitted and (members is None or member in members)
        asked = is_missing and row.state == RoundState.OPEN.value and not reader.view.ended
        key = event.sequence, member in submitted, config_of, asked
        if key not in made:
            fresh = replace(
                payload,
                attempt=row.attempt,
                deadline=row.deadline,
                submitted=key[1],
                config=config[config_of],
                config_of=config_of,
                asked=asked,
            )
            made[key] = replace(event, payload=fresh)
        return made[key]

    return [[present(event, reader) for event in some] for reader, some in zip(readers, found, strict=True)]


def _configs(readers: Sequence[LogReader], row: RoundRow) -> dict[str, dict[str, Value]]:
    """Returns the configuration of a round for readers that have values of their own, and for all others under ""."""
    training_id, t = readers[0].view.training_id, row.model_version
    common = find_config(training_id, row.number)
    own = find_client_config(training_id, row.number, {reader.user_id for reader in readers})
    return {"": resolve(common, t)} | {user_id: resolve({**common, **config}, t) for user_id, config in own.items()}


def _shown(event: Event, is_actor: bool) -> Event:
    if is_actor or not isinstance(event.payload, RoundClosed):
        return event
    return replace(event, payload=event.payload.public)


def _page(readers: Sequence[LogReader], after: int, until: int) -> list[EventRow]:
    view = readers[0].view
    if view.is_actor:
        return _all.all(view.training_id, after, until, PAGE)
    # Leaves out the events that none of the readers may see.
    audiences = {ALL, COHORT, MISSING, *(reader.user_id for reader in readers)}
    return _for.all(view.training_id, after, until, PAGE, audiences)


def _give(rows: Sequence[EventRow], readers: Sequence[LogReader]) -> None:
    is_actor = readers[0].view.is_actor
    by_user = defaultdict(list)
    for reader in readers:
        by_user[reader.user_id].append(reader)
    numbers = {row.number for row in rows if row.number is not None and not is_actor}
    members = set(_members.all(rows[0].training_id, numbers, by_user) if numbers else ())
    for_missing = numbers.intersection(row.number for row in rows if row.audience == MISSING)
    missing = members.difference(_submitted.all(rows[0].training_id, for_missing, by_user) if for_missing else ())
    for row in rows:
        if is_actor or row.audience == ALL:
            audience = readers
        elif row.audience == COHORT:
            audience = [reader for reader in readers if (row.number, reader.user_id) in members]
        elif row.audience == MISSING:
            audience = [reader for reader in readers if (row.number, reader.user_id) in missing]
        else:
            audience = by_user[row.audience]
        for reader in audience:
            reader.accept(row)


@compiled_values
def _last_sequence(training_id: str) -> Query:
    return EventRow.select(fn.MAX(EventRow.sequence)).where(EventRow.training_id == training_id)


@compiled
def _all(training_id: str, after: int, until: int, size: int) -> "ModelSelect[EventRow]":
    return _between(training_id, after, until).order_by(EventRow.sequence).limit(size)


@compiled
def _for(training_id: str, after: int, until: int, size: int, audiences: Collection[str]) -> "ModelSelect[EventRow]":
    return _all.build(training_id, after, until, size).where(in_array(EventRow.audience, audiences))


@compiled
def _situation_for_actor(training_id: str, after: int, until: int) -> "ModelSelect[EventRow]":
    return _last_situation(training_id, after, until).where(EventRow.audience.in_([ALL, COHORT]))


@compiled
def _situation_for(training_id: str, after: int, until: int, user_id: str) -> "ModelSelect[EventRow]":
    membership = CohortRow.select(CohortRow.user_id).where(
        CohortRow.training_id == training_id, CohortRow.number == EventRow.number, CohortRow.user_id == user_id
    )
    own = EventRow.audience.in_([ALL, user_id]) | ((EventRow.audience == COHORT) & fn.EXISTS(membership))
    return _last_situation(training_id, after, until).where(own)


def _last_situation(training_id: str, after: int, until: int) -> "ModelSelect[EventRow]":
    rows = _between(training_id, after, until).where(EventRow.kind.in_(SITUATION))
    return rows.order_by(EventRow.sequence.desc()).limit(1)


def _between(training_id: str, after: int, until: int) -> "ModelSelect[EventRow]":
    # One bound on each side: of two on one side, SQLite may use the wider one in the index.
    return EventRow.select().where(
        EventRow.training_id == training_id, EventRow.sequence > after, EventRow.sequence <= until
    )


@compiled_values
def _members(training_id: str, numbers: Collection[int], user_ids: Collection[str]) -> Query:
    """Finds which of the users belong, or belonged, to the cohorts of rounds."""
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
    rows = RoundRow.select(RoundRow.number, RoundRow.state, RoundRow.attempt, RoundRow.deadline, RoundRow.model_version)
    return rows.where(RoundRow.training_id == training_id, in_array(RoundRow.number, numbers))
