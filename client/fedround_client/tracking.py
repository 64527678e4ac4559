"""Tracking: the course of a training, from its log into a tracker."""

from __future__ import annotations

from contextlib import closing

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from fedround.v1.event_pb2 import ROUND_KIND_TRAIN, Event, RoundClosed, RoundKind
from fedround.v1.training_pb2 import (
    TRAINING_STATE_ERROR,
    TRAINING_STATE_INITIAL,
    GetTrainingRequest,
    Training,
)
from fedround_client.errors import CursorExpired, FedroundError, TrainingFailed, TrainingRemoved, from_event
from fedround_client.logs import get_logger
from fedround_client.round_number import planned_rounds, round_text
from fedround_client.rpc import Rpc
from fedround_client.subscription import Subscription
from fedround_client.trackers import EndRecord, RoundRecord, Tracker, TrackerName, make_tracker
from fedround_client.trackers.output import failed

logger = get_logger(__name__)


class TrackingCalls:
    """Tracking of a training."""

    _rpc: Rpc

    def track(
        self, training_id: str, tracker: TrackerName | Tracker, output: str = "", *, follow: bool = True
    ) -> Training:
        """Writes the rounds of a training to a tracker, from its first one on, until it ends.

        What was written before is not written again: a program that was interrupted or killed goes on where it was.

        Args:
            training_id: UUID of a training of yours. A participant gets what it may see.
            tracker: "csv", "jsonl", "mlflow" or "tensorboard", or an object with the methods of Tracker.
            output: Where a named tracker writes: a file, a folder, or a tracking URI; see docs/trackers.md.
            follow: Whether to wait for further rounds; False returns after those that are done now.

        Returns:
            The training, as it is after that.

        Raises:
            TrainingFailed: It ended in the state ERROR; that is written, too.
            TrainingRemoved: It was removed; that is written, too.
            TrackerFailed: The tracker cannot write, or the server's log lacks what was written before.
            TrainingNotFound: You have no such training.
            OSError: A file cannot be written.
        """
        made = make_tracker(tracker, output) if isinstance(tracker, str) else tracker
        training = self._training(training_id)
        with closing(made):
            cursor = made.begin(training)
            if follow or training.state != TRAINING_STATE_INITIAL:
                self._write(made, training, cursor, follow)
        ended = self._rpc.retrying(None)(self._training, training_id)
        if ended.state == TRAINING_STATE_ERROR:
            metadata = {"training_id": training_id}
            raise TrainingFailed(grpc.StatusCode.ABORTED, ended.error.reason, ended.error.message, metadata)
        return ended

    def _write(self, tracker: Tracker, training: Training, cursor: int, follow: bool) -> None:
        """Writes what is in the log after a cursor."""
        training_id = training.training_id
        cursors = {training_id: cursor}
        rounds = _Rounds(self._rpc, training)
        planned = planned_rounds(training.spec)
        try:
            for event in Subscription(self._rpc, training_id, resume_after=cursors, heartbeats=not follow):
                if not follow and _is_present(event, training):
                    return
                record, end = rounds.add(event), _end_record(event)
                if record is not None:
                    tracker.write(record)
                    logger.info("%s is tracked", round_text(record.number, planned).capitalize())
                if end is not None:
                    tracker.end(end)
                error = from_event(event)
                if isinstance(error, TrainingRemoved):
                    raise error
        except CursorExpired:
            raise failed(
                f"The server's log of the training {training_id} ends before the event {cursor}, which was tracked: the"
                " server was restored from an older backup. Track into another output."
            ) from None

    def _training(self, training_id: str) -> Training:
        request = GetTrainingRequest(training_id=training_id)
        return self._rpc.unary(self._rpc.trainings.GetTraining, request).training


class _Rounds:
    """Makes records of rounds from the events of a training."""

    def __init__(self, rpc: Rpc, training: Training) -> None:
        self._rpc = rpc
        self._training = training
        # Of the rounds that are not done: when they were opened, and who failed in them.
        self._opened: dict[int, float] = {}
        self._failed: dict[int, set[str]] = {}

    def add(self, event: Event) -> RoundRecord | None:
        """Returns the record of a round if the event ends one."""
        match event.WhichOneof("payload"):
            case "round_started":
                # A repeated round is told again.
                self._opened.setdefault(event.round_started.round, _seconds(event.create_time))
            case "participant_failed":
                failures = self._failed.setdefault(event.participant_failed.round, set())
                failures.add(event.participant_failed.participant_id)
            case "update_accepted":
                # Who submits nevertheless has not failed.
                accepted = event.update_accepted
                self._failed.get(accepted.round, set()).discard(accepted.participant_id)
            case "round_closed":
                return self._record(event, event.round_closed)
        return None

    def _record(self, event: Event, closed: RoundClosed) -> RoundRecord:
        opened = self._opened.pop(closed.round, None)
        is_known = closed.kind in RoundKind.values()
        time = _seconds(event.create_time)
        return RoundRecord(
            sequence=event.sequence,
            time=time,
            number=closed.round,
            kind=RoundKind.Name(closed.kind).removeprefix("ROUND_KIND_") if is_known else str(closed.kind),
            version=closed.model_version,
            num_updates=closed.num_updates,
            num_failed=len(self._failed.pop(closed.round, ())),
            seconds=None if opened is None else round(time - opened, 6),
            metrics=dict(sorted(closed.metrics.items())),
            not_finite=dict(sorted(closed.not_finite.items())),
            epsilon=self._epsilon(closed),
        )

    def _epsilon(self, closed: RoundClosed) -> float | None:
        """Returns what was spent if the version of a round is the latest; the server does not keep earlier values."""
        is_private = self._training.spec.aggregation.HasField("differential_privacy")
        if not is_private or closed.kind != ROUND_KIND_TRAIN:
            return None
        if self._training.model_version < closed.model_version:
            try:
                request = GetTrainingRequest(training_id=self._training.training_id)
                self._training = self._rpc.unary(self._rpc.trainings.GetTraining, request).training
            except FedroundError:
                return None
        is_latest = self._training.model_version == closed.model_version
        return self._training.privacy.epsilon if is_latest and self._training.HasField("privacy") else None


def _is_present(event: Event, training: Training) -> bool:
    """Returns whether an event comes after all rounds that were done when a training was read."""
    if event.HasField("heartbeat"):
        return True
    if not event.HasField("round_started"):
        return False
    # Its last round may be done if it is closed, and no other one follows during a pause.
    return event.round_started.round + (not training.round_closed) > training.round


def _end_record(event: Event) -> EndRecord | None:
    sequence, time = event.sequence, _seconds(event.create_time)
    match event.WhichOneof("payload"):
        case "training_finished":
            finished = event.training_finished
            return EndRecord(sequence, time, "stopped" if finished.stopped else "completed", finished.reason)
        case "training_failed":
            return EndRecord(sequence, time, "failed", event.training_failed.reason, event.training_failed.message)
        case "training_removed":
            return EndRecord(sequence, time, "removed")
    return None


def _seconds(moment: Timestamp) -> float:
    return moment.seconds + moment.nanos / 1e9
