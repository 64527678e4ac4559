"""Events are encoded once per view, and never shown in the view of another reader."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aggregations import FED_AVG
from fedround.v1.event_pb2 import Event as Message
from fedround_server.coordinator.inline_models import InlineModel
from fedround_server.coordinator.subscription import Heartbeat
from fedround_server.domain.event import Event, ModelInfo, RoundClosed, RoundStarted
from fedround_server.domain.model import BlobRef
from fedround_server.services import convert
from fedround_server.services.event_encoder import CAPACITY, EventEncoder

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MODEL = ModelInfo("m", 0, BlobRef("0" * 64, 10))
STARTED = RoundStarted(0, "TRAIN", MODEL, NOW, FED_AVG, ("loss",))
CLOSED = RoundClosed(0, "TRAIN", 1, 2, {"loss": 0.5}, {"own": 1.0})


def event(payload: Any, sequence: int = 1, training_id: str = "t") -> Event:
    return Event(training_id, sequence, NOW, payload)


def encoded(shown: Event) -> bytes:
    return convert.event(shown).SerializeToString()


def test_an_event_is_encoded_once() -> None:
    encoder = EventEncoder()
    first = encoder.encode(event(STARTED))
    assert first == encoded(event(STARTED))
    assert encoder.encode(event(replace(STARTED))) is first


def test_a_model_is_encoded_once() -> None:
    encoder, model = EventEncoder(), InlineModel("0" * 64, b"file")
    started = event(STARTED)
    with_model = convert.event(started)
    with_model.round_started.inline_model = b"file"
    first = encoder.encode(started, model)
    assert first == with_model.SerializeToString()
    assert encoder.encode(event(replace(STARTED)), model) is first
    assert encoder.encode(started) == encoded(started)
    again = event(replace(STARTED, attempt=2))
    assert Message.FromString(encoder.encode(again, model)).round_started.attempt == 2
    own = event(replace(STARTED, config={"epochs": 2}, config_of="u"))
    assert Message.FromString(encoder.encode(own, model)).round_started.inline_model == b"file"
    # It is kept no longer than the file.
    assert not any(b"file" in kept for kept in encoder._encoded.values())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (event(STARTED), event(STARTED, sequence=2)),
        (event(STARTED), event(STARTED, training_id="u")),
        (event(STARTED), event(replace(STARTED, submitted=True))),
        (event(STARTED), event(replace(STARTED, attempt=2))),
        (event(STARTED), event(replace(STARTED, deadline=NOW + timedelta(seconds=1)))),
        (event(STARTED), event(replace(STARTED, deadline=None))),
        (event(CLOSED), event(CLOSED.public)),
    ],
)
def test_another_view_has_a_message_of_its_own(one: Event, other: Event) -> None:
    encoder = EventEncoder()
    for shown in (one, other, one, other):
        assert encoder.encode(shown) == encoded(shown)
    assert convert.event(one) != convert.event(other)


def test_values_of_a_single_participant_are_for_nobody_else() -> None:
    common, own = {"epochs": 1}, {"one": {"epochs": 2}, "other": {"epochs": True}, "third": {"epochs": 1.0}}
    given = {"": common, **own}
    shown = [event(replace(STARTED, config=config, config_of=user)) for user, config in given.items()]
    encoder = EventEncoder()
    for one in (*shown, *shown):
        assert encoder.encode(one) == encoded(one)
    assert len({encoder.encode(one) for one in shown}) == 4
    # They take no room from what many get.
    assert len(encoder._encoded) == 1


def test_only_the_last_events_are_kept() -> None:
    encoder = EventEncoder()
    for sequence in range(3 * CAPACITY):
        encoder.encode(event(STARTED, sequence))
        encoder.encode(Heartbeat("t", sequence))
    assert len(encoder._encoded) == CAPACITY
