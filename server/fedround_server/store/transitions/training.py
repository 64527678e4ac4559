"""Changes of a training's own row: its state, and its event log."""

from datetime import datetime

from fedround_server.domain.event import Payload
from fedround_server.domain.training import TRANSITIONS, TrainingState
from fedround_server.store.db.rows import insert, new_row, save
from fedround_server.store.tables.mapping import from_payload
from fedround_server.store.tables.schema import ALL, EventRow, TrainingRow


def state_of(training: TrainingRow) -> TrainingState:
    """Returns a row's state."""
    return TrainingState(training.state)


def move(training: TrainingRow, target: TrainingState, now: datetime) -> None:
    """Makes a transition of the training's life."""
    if target not in TRANSITIONS[state_of(training)]:
        raise RuntimeError(f"a training cannot go from {training.state} to {target.value}")
    training.state = target.value
    training.update_time = now
    save(training)


def append_event(
    training: TrainingRow, payload: Payload, now: datetime, audience: str = ALL, number: int | None = None
) -> int:
    """Appends an event to the training's log, and returns its sequence; number is the round of the audience COHORT."""
    event = next_event(training, payload, now, audience, number)
    save(training)
    insert(event)
    return training.last_sequence


def next_event(
    training: TrainingRow, payload: Payload, now: datetime, audience: str = ALL, number: int | None = None
) -> EventRow:
    """Returns the next event of the training's log, like `append_event`; the caller writes it, and the training."""
    training.last_sequence += 1
    training.update_time = now
    return new_row(
        EventRow,
        training_id=training.training_id,
        sequence=training.last_sequence,
        kind=type(payload).__name__,
        audience=audience,
        number=number,
        payload=from_payload(payload),
        create_time=now,
    )
