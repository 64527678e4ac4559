"""The event loop of a participant: wait for rounds, and run them until the training ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from functools import partial

import grpc

from fedround.v1.event_pb2 import Event, RoundKind, RoundStarted, WorkNotNeeded
from fedround.v1.training_pb2 import EVALUATION_NEVER, TRAINING_STATE_COMPLETED, TRAINING_STATE_ERROR, Training
from fedround_client.check_in import CheckIns
from fedround_client.errors import (
    CursorExpired,
    FedroundError,
    MetricsExist,
    ModelNotFound,
    NotInCohort,
    RemovedFromTraining,
    RoundNotOpen,
    TrainingEnded,
    TrainingNotFound,
    UnsupportedRound,
    UpdateExists,
    UpdateStale,
    UpdateSuperseded,
    from_event,
)
from fedround_client.logs import get_logger
from fedround_client.participation import Mode, Participation
from fedround_client.progress import kind_name, list_words
from fedround_client.retry import ATTEMPTS
from fedround_client.round import RoundCalls
from fedround_client.round_number import planned_rounds, round_text
from fedround_client.round_over import RoundOver, is_asynchronous
from fedround_client.rpc import Response, Rpc
from fedround_client.runner import Runner
from fedround_client.subscription import LIVE_SECONDS, Subscription
from fedround_client.training import TrainingCalls
from fedround_client.user import UserCalls
from fedround_wire.allocator import keep_freed

logger = get_logger(__name__)

MAX_FREED_BLOCK, TRIM_THRESHOLD = 32 << 20, 64 << 20
"""Arguments of `keep_freed`: the values that glibc itself reaches once it has seen large blocks."""

MAX_FAILURE_MESSAGE = 1000
"""How many characters of an exception's message are reported."""

# ModelNotFound: when a round is over, its model may have been replaced by later versions and lost its file.
_ROUND_MISSED = (
    UpdateExists,
    UpdateSuperseded,
    MetricsExist,
    NotInCohort,
    TrainingEnded,
    TrainingNotFound,
    ModelNotFound,
)
_CONTROL = {
    "training_paused": "Training %s is paused by its actor: no further round opens until it is resumed",
    "training_resumed": "Training %s is resumed by its actor",
    "stop_requested": "Training %s is stopped by its actor: it ends after this round",
}
_ENDED = (TRAINING_STATE_COMPLETED, TRAINING_STATE_ERROR)


class Participant(UserCalls, TrainingCalls, RoundCalls):
    """One run of `Client.participate`, which documents it."""

    def __init__(
        self,
        rpc: Rpc,
        runner: Runner,
        *,
        training_id: str | None,
        until_finished: bool,
        attributes: Mapping[str, str] | None = None,
        mode: Mode = "subscribe",
    ) -> None:
        """Creates a participant.

        Args:
            rpc: Calls the server.
            runner: Runs the rounds.
            training_id: As in `Client.participate`.
            until_finished: As in `Client.participate`.
            attributes: What the participant says of itself.
            mode: As in `Client.participate`.
        """
        self._rpc = rpc
        self._source = Subscription if mode == "subscribe" else CheckIns
        self._runner = runner
        self._user_id = ""
        self._training_id = training_id or ""
        self._until_finished = until_finished or bool(training_id)
        self._attributes = attributes or {}
        # The last round in which the work of this participant was rejected as not needed: training id and number.
        self._not_needed: tuple[str, int] | None = None
        # How many results of this participant were accepted, by training id.
        self._accepted: dict[str, int] = {}
        # In asynchronous trainings, the last round in which an update counts, by training id.
        self._counted: dict[str, int] = {}
        # Ids of trainings whose rounds this participant can run.
        self._checked: set[str] = set()
        # Trainings whose position the server has forgotten, as long as nothing has come of them since.
        self._forgotten: set[str] = set()
        # Trainings that have finished, and may be removed later.
        self._finished: set[str] = set()
        # What this participant knows of trainings, by their ids, for messages.
        self._planned: dict[str, int] = {}
        self._names: dict[str, str] = {}

    def run(self) -> Participation:
        """Participates until the end."""
        keep_freed(MAX_FREED_BLOCK, TRIM_THRESHOLD)
        myself = self._retry(self.myself)
        self._user_id = myself.user_id
        self._runner.participate_as(myself)
        logger.info('Connected to %s as "%s"', self._rpc.address, myself.name)
        # A subscription to all trainings may begin with events of those that had ended before.
        ended = set() if self._training_id else self._retry(self._ended_trainings)
        while True:
            try:
                subscription = self._source(
                    self._rpc,
                    self._training_id,
                    session_id=self._rpc.session_id,
                    attributes=self._attributes,
                    heartbeats=bool(self._forgotten),
                )
                # The server must not take this participant for connected after an exception.
                with closing(iter(subscription)) as events:
                    for event in events:
                        self._forgotten.discard(event.training_id)
                        result = None
                        if event.HasField("heartbeat"):
                            result = self._end_forgotten()
                        elif event.training_id not in ended:
                            result = self.handle(event, is_live=subscription.is_live)
                        if result is not None:
                            return result
                raise TrainingNotFound(
                    grpc.StatusCode.NOT_FOUND,
                    "TRAINING_NOT_FOUND",
                    f"The events of training {self._training_id} ended without a final event.",
                )
            except (CursorExpired, TrainingNotFound) as error:
                # A server that was restored from a backup has forgotten the end of a log, or a training.
                if self._training_id and isinstance(error, TrainingNotFound):
                    raise
                self._counted.clear()
                self._runner.forget_all()
                logger.warning("Starting again at the current round: %s", error)
                if not self._training_id:
                    self._forgotten |= subscription.training_ids - ended
                result = self._end_forgotten()
                if result is not None:
                    return result

    def _end_forgotten(self) -> Participation | None:
        """Handles the ends of trainings whose log was forgotten: a subscription to all trainings leaves out those.

        Returns:
            The result, if one of them ends the participation.
        """
        for training_id in sorted(self._forgotten):
            try:
                is_ended = self._retry(partial(self.get_training, training_id)).state in _ENDED
            except TrainingNotFound:
                self._forgotten.discard(training_id)
                continue
            if is_ended:
                self._forgotten.discard(training_id)
                for event in Subscription(self._rpc, training_id):
                    result = self.handle(event, is_live=False)
                    if result is not None:
                        return result
        return None

    def _ended_trainings(self) -> set[str]:
        trainings = list(self.trainings("CLIENT"))
        names = [f'"{training.spec.name}"' for training in trainings if training.state not in _ENDED]
        if names:
            noun = "training" if len(names) == 1 else "trainings"
            logger.info("Registered in %d %s: %s", len(names), noun, list_words(names))
        else:
            logger.info("Registered in no training that is open: waiting for an actor to register this participant")
        for training in trainings:
            self._learn(training)
        return {training.training_id for training in trainings if training.state in _ENDED}

    def handle(self, event: Event, *, is_live: bool) -> Participation | None:
        """Handles an event of a training: runs the round that it starts.

        Args:
            event: The event.
            is_live: Whether it has just happened. If not, the server is asked whether its round is still open.

        Returns:
            The result, if the event ends the participation.
        """
        kind = event.WhichOneof("payload")
        if kind == "training_started":
            self._log_start(event.training_id)
            return None
        if kind == "round_started":
            # Short rounds leave no idle phase, after which an event would be known to be live.
            is_recent = is_live or self._runner.server_clock.age(event) < LIVE_SECONDS
            self._run_round(event.training_id, event.round_started, is_live=is_recent)
            return None
        if kind == "round_extended":
            name = self._round_name(event.training_id, event.round_extended.round)
            logger.info("%s is repeated: attempt %d", name, event.round_extended.attempt)
            return None
        if kind == "work_not_needed":
            self._log_not_needed(event.training_id, event.work_not_needed)
            return None
        if kind in _CONTROL:
            logger.info(_CONTROL[kind], self._name(event.training_id))
            return None
        if kind == "update_lost":
            self._accepted[event.training_id] = max(0, self._accepted.get(event.training_id, 0) - 1)
            self._runner.forget_update(event.training_id, event.update_lost.round)
            self._counted.pop(event.training_id, None)
            name = self._round_name(event.training_id, event.update_lost.round)
            logger.warning("%s: the server lost the update to a damaged file, and asks for it anew", name)
            return None
        error = from_event(event) or self._removal(event)
        if error is not None:
            self._accepted.pop(event.training_id, None)
            self._forget(event.training_id)
            if self._until_finished:
                raise error
            # A relay removes the training of each round.
            level = logging.DEBUG if event.training_id in self._finished else logging.WARNING
            self._finished.discard(event.training_id)
            logger.log(level, "The participation in training %s has ended: %s", self._name(event.training_id), error)
        if kind != "training_finished":
            return None
        finished = event.training_finished
        self._finished.add(event.training_id)
        name = self._name(event.training_id)
        how = "was stopped by its actor" if finished.stopped else "is finished"
        logger.info("Training %s %s: the model has version %d", name, how, finished.model_version)
        rounds = self._accepted.pop(event.training_id, 0)
        self._forget(event.training_id)
        self._runner.forget_training(event.training_id)
        result = Participation(event.training_id, finished.model_id, finished.model_version, rounds)
        return result if self._until_finished else None

    def _forget(self, training_id: str) -> None:
        """Forgets what this participant did in an asynchronous training, or in its part of one, that has ended."""
        self._counted.pop(training_id, None)
        self._runner.forget(training_id)

    def _removal(self, event: Event) -> FedroundError | None:
        """Returns the exception for an event that removes this participant."""
        if event.WhichOneof("payload") != "client_removed" or event.client_removed.client_id != self._user_id:
            return None
        message = f"This participant was removed from training {event.training_id}."
        metadata = {"training_id": event.training_id}
        return RemovedFromTraining(grpc.StatusCode.ABORTED, "CLIENT_REMOVED", message, metadata)

    def _run_round(self, training_id: str, started: RoundStarted, *, is_live: bool) -> None:
        unchecked = bool(started.metric_names) and not self._runner.can_evaluate and training_id not in self._checked
        buffered = is_asynchronous(started)
        try:
            if started.submitted or started.round <= self._counted.get(training_id, -1):
                logger.info("%s: submitted already", self._round_name(training_id, started.round))
            elif (unchecked or buffered or not is_live) and self._is_over(training_id, started):
                logger.info("%s: over already", self._round_name(training_id, started.round))
            else:
                with self._rpc.traces.span("round"):
                    self._describe(training_id, started)
                    number = self._runner.run(training_id, started, self._round_name(training_id, started.round))
                if buffered:
                    self._counted[training_id] = number
                self._accepted[training_id] = self._accepted.get(training_id, 0) + 1
                accepted = "accepted" if number == started.round else f"accepted for round {number + 1}"
                name = self._round_name(training_id, started.round)
                logger.info("%s: %s; waiting for the next round", name, accepted)
        except RoundOver:
            logger.info(
                "%s: over, so nothing is sent; waiting for the next round", self._round_name(training_id, started.round)
            )
        except RoundNotOpen as error:
            # A round that was closed by the updates of others says by how many.
            enough, asked = error.metadata.get("num_updates"), error.metadata.get("num_participants")
            if self._runner.keeps_update(training_id):
                name = self._round_name(training_id, started.round)
                logger.warning("%s: the update is kept for the next round: %s", name, error)
            elif enough and asked:
                late = f"came too late, {enough} of {asked} were enough ({error.reason})"
                self._not_needed = (training_id, started.round)
                logger.warning("%s: %s; waiting for the next round", self._round_name(training_id, started.round), late)
            else:
                logger.warning("%s is missed: %s", self._round_name(training_id, started.round), error)
        except UpdateStale as error:
            logger.warning("%s: the update is discarded: %s", self._round_name(training_id, started.round), error)
        except _ROUND_MISSED as error:
            logger.warning("%s is missed: %s", self._round_name(training_id, started.round), error)
        except (Exception, SystemExit) as error:
            self._report(training_id, started, error)
            raise

    def _describe(self, training_id: str, started: RoundStarted) -> None:
        """Sets the attributes of the span of a round."""
        traces = self._rpc.traces
        traces.set("training_id", training_id)
        traces.set("round", started.round)
        traces.set("kind", kind_name(started))
        traces.set("user_id", self._user_id)

    def _log_not_needed(self, training_id: str, released: WorkNotNeeded) -> None:
        """Logs that a round was closed without the work of this participant, unless that was logged as an error."""
        if self._not_needed != (training_id, released.round):
            late = f"came too late, {released.num_updates} of {released.num_participants} were enough"
            logger.info("%s: %s; waiting for the next round", self._round_name(training_id, released.round), late)

    def _check_functions(self, training: Training) -> None:
        """Checks, before anything is trained, that this participant can run all rounds of a training.

        Raises:
            UnsupportedRound: The training has evaluation rounds, and there is no evaluate function.
        """
        spec = training.spec
        if spec.metric_names and spec.evaluation != EVALUATION_NEVER and not self._runner.can_evaluate:
            message = (
                f"Training {training.training_id} asks for metrics ({', '.join(spec.metric_names)}), which needs an"
                " evaluate function: participate(train, evaluate)."
            )
            metadata = {"training_id": training.training_id}
            raise UnsupportedRound(grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED_ROUND", message, metadata)
        self._checked.add(training.training_id)

    def _report(self, training_id: str, started: RoundStarted, error: BaseException) -> None:
        """Reports to the server that this participant cannot deliver, so that the others do not wait for it."""
        if isinstance(error, FedroundError):
            reason, message = error.reason, error.message
        else:
            reason = f"{RoundKind.Name(started.kind).removeprefix('ROUND_KIND_')}_FAILED"
            message = f"{type(error).__name__}: {error}"
        try:
            self._rpc.retrying(ATTEMPTS)(
                self.report_failure, training_id, started.round, reason, message[:MAX_FAILURE_MESSAGE]
            )
        except FedroundError as unreported:
            logger.warning(
                "%s: the failure could not be reported: %s", self._round_name(training_id, started.round), unreported
            )

    def _log_start(self, training_id: str) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        if training_id not in self._planned:
            with suppress(FedroundError):
                self._learn(self.get_training(training_id))
        logger.info("Training %s has started", self._name(training_id))

    def _learn(self, training: Training) -> None:
        """Remembers what messages say of a training."""
        self._planned[training.training_id] = planned_rounds(training.spec)
        self._names[training.training_id] = f'"{training.spec.name}"'

    def _name(self, training_id: str) -> str:
        return self._names.get(training_id, training_id)

    def _round_name(self, training_id: str, number: int) -> str:
        name = round_text(number, self._planned.get(training_id)).capitalize()
        # Who participates in one training after another may participate in several at once.
        return name if self._until_finished else f"{name} of training {self._name(training_id)}"

    def _is_over(self, training_id: str, started: RoundStarted) -> bool:
        """Returns whether a round was closed while this participant was disconnected or busy.

        Raises:
            UnsupportedRound: It was not, and this participant cannot run all rounds of the training.
        """
        training: Training = self._retry(lambda: self.get_training(training_id))
        self._learn(training)
        if training.state in _ENDED or training.round > started.round:
            return True
        self._check_functions(training)
        return False

    def _retry(self, call: Callable[[], Response]) -> Response:
        """Repeats a call until the server answers it."""
        return self._rpc.retrying(None)(call)
