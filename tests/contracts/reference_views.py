"""What a subscriber may read, as a reference implementation: for one user, with the plainest queries."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from peewee import JOIN, ModelSelect, fn

from fedround_server.domain.event import LAST_OF_A_TRAINING, Event, RoundClosed, RoundStarted, TrainingStarted
from fedround_server.store.queries.log_view import LogView
from fedround_server.store.tables.mapping import ENDED, to_event
from fedround_server.store.tables.schema import (
    ALL,
    COHORT,
    MISSING,
    CohortRow,
    EventRow,
    ParticipantRow,
    RoundRow,
    TrainingRow,
    UpdateRow,
)

LAST_KINDS = tuple(kind.__name__ for kind in LAST_OF_A_TRAINING)


def views(user_id: str, training_ids: Collection[str]) -> list[LogView]:
    return _views(user_id, TrainingRow.training_id.in_(sorted(training_ids)))


def open_views(user_id: str) -> list[LogView]:
    mine = ParticipantRow.select(ParticipantRow.training_id).where(
        ParticipantRow.user_id == user_id, ParticipantRow.remove_time.is_null()
    )
    return _views(
        user_id,
        (TrainingRow.actor_id == user_id) | TrainingRow.training_id.in_(mine),
        TrainingRow.state.not_in(ENDED),
        TrainingRow.remove_time.is_null(),
    )


def start(view: LogView, user_id: str) -> int:
    return max(view.after, _situation(view, user_id) - 1)


def read(view: LogView, user_id: str, after: int | None, limit: int) -> tuple[list[Event], int]:
    if after is None:
        after = start(view, user_id)
    top = EventRow.select(fn.MAX(EventRow.sequence)).where(EventRow.training_id == view.training_id).scalar() or 0
    rows = _visible(view, user_id).where(EventRow.sequence > after, EventRow.sequence <= top)
    found = [to_event(row) for row in rows.order_by(EventRow.sequence).limit(limit)]
    events = [_shown(event, view) for event in _with_present_rounds(found, view, user_id)]
    return events, events[-1].sequence if len(events) == limit else max(after, top)


def _views(user_id: str, *conditions: Any) -> list[LogView]:
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
    return [_view_of(row, row["actor_id"] == user_id) for row in rows]


def _view_of(row: Mapping[str, Any], is_actor: bool) -> LogView:
    over = row["remove_time"] is not None or row["state"] in ENDED
    return LogView(
        training_id=row["training_id"],
        is_actor=is_actor,
        after=0 if is_actor else row["after_sequence"],
        until=None if is_actor else row["until_sequence"],
        last_sequence=row["last_sequence"],
        ended=over or not (is_actor or row["until_sequence"] is None),
    )


def _shown(event: Event, view: LogView) -> Event:
    if view.is_actor or not isinstance(event.payload, RoundClosed):
        return event
    return replace(event, payload=event.payload.public)


def _with_present_rounds(found: Sequence[Event], view: LogView, user_id: str) -> list[Event]:
    """Replaces the starts of rounds by the present state of these rounds."""
    started = {event.payload.round for event in found if isinstance(event.payload, RoundStarted)}
    if not started:
        return list(found)
    mine = (
        (UpdateRow.training_id == RoundRow.training_id)
        & (UpdateRow.number == RoundRow.number)
        & (UpdateRow.user_id == user_id)
    )
    membership = (
        (CohortRow.training_id == RoundRow.training_id)
        & (CohortRow.number == RoundRow.number)
        & (CohortRow.user_id == user_id)
    )
    rows: Iterable[tuple[Any, ...]] = (
        RoundRow.select(
            RoundRow.number, RoundRow.state, RoundRow.attempt, RoundRow.deadline, UpdateRow.update_id, CohortRow.user_id
        )
        .join(UpdateRow, JOIN.LEFT_OUTER, on=mine)
        .switch(RoundRow)
        .join(CohortRow, JOIN.LEFT_OUTER, on=membership)
        .where(RoundRow.training_id == found[0].training_id, RoundRow.number.in_(started))
        .tuples()  # type: ignore[assignment]  # the stubs don't know what tuples() does
    )
    present = {
        number: {
            "attempt": attempt,
            "deadline": deadline,
            "submitted": update_id is not None,
            "asked": state == "OPEN" and update_id is None and member_id is not None and not view.ended,
        }
        for number, state, attempt, deadline, update_id, member_id in rows
    }
    return [
        replace(event, payload=replace(event.payload, **present[event.payload.round]))
        if isinstance(event.payload, RoundStarted)
        else event
        for event in found
    ]


def _visible(view: LogView, user_id: str) -> "ModelSelect[EventRow]":
    rows = EventRow.select().where(EventRow.training_id == view.training_id, EventRow.sequence > view.after)
    if view.is_actor:
        return rows
    rounds = CohortRow.select(CohortRow.number).where(
        CohortRow.training_id == view.training_id, CohortRow.user_id == user_id
    )
    submitted = UpdateRow.select(UpdateRow.number).where(
        UpdateRow.training_id == view.training_id, UpdateRow.user_id == user_id
    )
    rows = rows.where(
        EventRow.audience.in_([ALL, user_id])
        | ((EventRow.audience == COHORT) & EventRow.number.in_(rounds))
        | ((EventRow.audience == MISSING) & EventRow.number.in_(rounds) & EventRow.number.not_in(submitted))
    )
    return rows if view.until is None else rows.where(EventRow.sequence <= view.until)


def _situation(view: LogView, user_id: str) -> int:
    """Returns the sequence of the event that shows the present situation."""
    kinds = (RoundStarted.__name__, TrainingStarted.__name__, "ClientRemoved", *LAST_KINDS)
    rows = _visible(view, user_id).where(EventRow.audience != MISSING)
    if view.is_actor:
        rows = rows.where(EventRow.audience.in_([ALL, COHORT]))
    row = rows.where(EventRow.kind.in_(kinds)).order_by(EventRow.sequence.desc()).first()
    return 1 if row is None else int(row.sequence)
