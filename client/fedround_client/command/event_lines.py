"""Events as lines for people, with the names of trainings and users."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from fedround.v1.event_pb2 import ROUND_KIND_EVALUATE, Event, RoundKind, RoundStarted, TrainingFinished, UpdateAccepted
from fedround.v1.round_pb2 import ROUND_STATE_OPEN, ROUND_STATE_PENDING
from fedround.v1.training_pb2 import Training
from fedround_client.client import Client
from fedround_client.command.names import participant_names
from fedround_client.command.output import as_dict, when
from fedround_client.command.training_summary import missing, task
from fedround_client.errors import FedroundError
from fedround_client.progress import awaited_text, may_wait
from fedround_client.round_number import planned_rounds, round_text

FEW = 3
"""Missing participants are named once they are so few."""


class EventLines:
    """Describes events. Asks the server for names when they are needed, and keeps them."""

    def __init__(self, client: Client, *, several: bool) -> None:
        """Creates an object that knows no names yet.

        Args:
            client: Asks for trainings, users and rounds.
            several: Whether lines name their training.
        """
        self._client = client
        self._several = several
        self._trainings: dict[str, Training | None] = {}
        self._users: dict[str, str] = {}
        self._kinds: dict[tuple[str, int], RoundKind.ValueType] = {}
        # What was said last of the pending round of a training.
        self._awaited: dict[str, str] = {}
        self._describe: Mapping[str, Callable[[str, Any], str]] = {
            "training_started": lambda training_id, one: (
                f"started: {one.target_num_updates} versions to make{self._pending(training_id)}"
            ),
            "round_started": self._round_started,
            "round_extended": lambda training_id, one: (
                f"{self._round(training_id, one.round)} is repeated: attempt {one.attempt},"
                f" {one.updates_arrived} of {one.updates_expected} arrived, until {when(one.deadline)}"
            ),
            "update_accepted": self._update_accepted,
            "participant_failed": lambda training_id, one: (
                f"{self._round(training_id, one.round)}: {one.participant_name} failed: {one.reason}"
                f"{f': {one.message}' if one.message else ''};"
                f" {one.updates_arrived} of {one.updates_expected} arrived"
            ),
            "round_closed": lambda training_id, one: (
                f"{self._round(training_id, one.round)} is done: {task(one.kind)}, version {one.model_version},"
                f" {one.num_updates} arrived{_metrics(one.metrics)}{_not_finite(one.not_finite)}"
                f"{self._pending(training_id)}"
            ),
            "work_not_needed": lambda training_id, one: (
                f"{self._round(training_id, one.round)}: {one.num_updates} of {one.num_participants} are enough,"
                " the others are told that they are free"
            ),
            "client_removed": lambda training_id, one: f"{self._user(training_id, one.client_id)} was removed",
            "training_paused": lambda *_: "paused by its actor: no further round opens",
            "training_resumed": lambda *_: "resumed by its actor",
            "stop_requested": lambda *_: "stopped by its actor: it ends after this round",
            "config_updated": lambda training_id, one: (
                f"the configuration is changed from {self._round(training_id, one.from_round)} on"
            ),
            "training_finished": lambda _, one: (
                f"{_how_it_ended(one)}: version {one.model_version} of model {one.model_id}"
            ),
            "training_failed": lambda _, one: f"failed: {one.reason}: {one.message}",
            "training_removed": lambda _, one: "the training was removed",
        }

    def line(self, event: Event) -> str:
        """Returns the line of an event."""
        kind = event.WhichOneof("payload") or "unknown"
        payload = getattr(event, kind, None)
        describe = self._describe.get(kind)
        text = describe(event.training_id, payload) if describe else self._fields(event.training_id, kind, payload)
        return "  ".join(filter(None, (when(event.create_time), self._title(event.training_id), text)))

    def waiting_line(self, heartbeat: Event) -> str:
        """Returns a line about whom a pending round waits for, if that has changed since the last line; else ""."""
        training_id = heartbeat.training_id
        before = self._awaited.get(training_id)
        if not self._pending(training_id) or self._awaited[training_id] == before:
            return ""
        now = Timestamp()
        now.GetCurrentTime()
        return f"{when(now)}  {self._awaited[training_id]}"

    def _title(self, training_id: str) -> str:
        if not self._several:
            return ""
        training = self._training(training_id)
        # Several trainings may have the same name.
        return f"{training.spec.name} ({training_id[:8]})" if training is not None else training_id

    def _round_started(self, training_id: str, started: RoundStarted) -> str:
        self._kinds[training_id, started.round] = started.kind
        deadline = f", until {when(started.deadline)}" if started.HasField("deadline") else ""
        attempt = f", attempt {started.attempt}" if started.attempt > 1 else ""
        title = self._round(training_id, started.round)
        return f"{title} is open: {task(started.kind)}, version {started.model.version}{attempt}{deadline}"

    def _update_accepted(self, training_id: str, accepted: UpdateAccepted) -> str:
        is_report = self._kinds.get((training_id, accepted.round)) == ROUND_KIND_EVALUATE
        return (
            f"{self._round(training_id, accepted.round)}: {'report' if is_report else 'update'} of"
            f" {self._user(training_id, accepted.participant_id)}, {accepted.num_examples} examples;"
            f" {accepted.updates_arrived} of {accepted.updates_expected} arrived{self._missing(training_id, accepted)}"
        )

    def _missing(self, training_id: str, accepted: UpdateAccepted) -> str:
        if not 0 < accepted.updates_expected - accepted.updates_arrived <= FEW:
            return ""
        with suppress(FedroundError):
            found = self._client.get_round(training_id)
            # The round may have gone on since the event.
            if (found.number, found.state, found.updates_arrived) == (
                accepted.round,
                ROUND_STATE_OPEN,
                accepted.updates_arrived,
            ):
                return f"; missing: {missing(found.participants, found.num_participants)}"
        return ""

    def _pending(self, training_id: str) -> str:
        """Returns how many participants the next round waits for; an empty text if it does not wait."""
        training = self._training(training_id)
        if training is not None and may_wait(training.spec):
            with suppress(FedroundError):
                found = self._client.get_round(training_id)
                if found.state == ROUND_STATE_PENDING:
                    text = f"{self._round(training_id, found.number)}: waiting for {awaited_text(found)}"
                    self._awaited[training_id] = text
                    return f"; {text}"
        return ""

    def _round(self, training_id: str, number: int) -> str:
        training = self._training(training_id)
        return round_text(number, planned_rounds(training.spec) if training is not None else None)

    def _training(self, training_id: str) -> Training | None:
        if training_id not in self._trainings:
            self._trainings[training_id] = None
            with suppress(FedroundError):
                self._trainings[training_id] = self._client.get_training(training_id)
        return self._trainings[training_id]

    def _user(self, training_id: str, user_id: str) -> str:
        if user_id not in self._users:
            # Not everybody is listed: a user may be removed, and a participant may not list users. Do not ask again.
            known = participant_names(self._client, training_id, [user_id])
            self._users = {**self._users, user_id: user_id, **known}
        return self._users[user_id]

    def _fields(self, training_id: str, kind: str, payload: Message | None) -> str:
        """Returns the line of an event of a newer server."""
        fields = as_dict(payload) if payload is not None else {}
        for name in fields.keys() & {"client_id", "participant_id"}:
            fields[name] = self._user(training_id, fields[name])
        number = fields.pop("round", None)
        where = f"{self._round(training_id, number)}: " if isinstance(number, int) else ""
        return f"{where}{kind.replace('_', ' ')} " + ", ".join(f"{name}: {value}" for name, value in fields.items())


def _how_it_ended(finished: TrainingFinished) -> str:
    if finished.stopped:
        return "stopped by its actor"
    if finished.reason:
        return f"finished early ({finished.reason})"
    return "finished early" if finished.stopped_early else "finished"


def _metrics(metrics: Mapping[str, float]) -> str:
    return "".join(f", {name} {value:.6g}" for name, value in sorted(metrics.items()))


def _not_finite(counts: Mapping[str, int]) -> str:
    return "".join(f", {name} not finite in {count}" for name, count in sorted(counts.items()))
