"""Taking part in trainings: wait for a round, fetch its model, do the user's work, hand in the result."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

import grpc

from fedround.v1.aggregation_pb2 import UPDATE_PRECISION_UNSPECIFIED, UpdatePrecision
from fedround.v1.event_pb2 import Event, ModelInfo, RoundKind, RoundStarted
from fedround.v1.model_pb2 import DownloadModelRequest
from fedround.v1.training_pb2 import TRAINING_STATE_COMPLETED, TRAINING_STATE_ERROR, Training
from fedround_client.cache import ModelCache
from fedround_client.errors import (
    CursorExpired,
    MetricsExist,
    ModelNotFound,
    NotInCohort,
    RemovedFromTraining,
    RoundNotOpen,
    TrainingEnded,
    TrainingNotFound,
    UnsupportedRound,
    UpdateExists,
    from_event,
)
from fedround_client.half_precision import HALF_DTYPES, NotRepresentable, differences
from fedround_client.round import RoundCalls
from fedround_client.rpc import Response, Rpc
from fedround_client.subscription import LAST, Subscription
from fedround_client.swag_moments import Moments
from fedround_client.tensors import Framework, SafetensorsReader, StateDict, copied
from fedround_client.training import TrainingCalls
from fedround_client.transfer import Payload, Tee, download
from fedround_client.user import UserCalls
from fedround_wire.allocator import keep_freed

logger = logging.getLogger(__name__)

LARGEST, KEPT = 32 << 20, 64 << 20
"""Which freed blocks of memory are kept, and how much of it: as glibc does by itself once it has seen large blocks."""
SNAPSHOTS = 10
"""How often the weights are looked at in a SWAG round by a participant without a swag function."""

# ModelNotFound: once a round is over, its model may lose its file, since later ones took its place.
_TOO_LATE = (UpdateExists, MetricsExist, RoundNotOpen, NotInCohort, TrainingEnded, TrainingNotFound, ModelNotFound)
_ENDED = (TRAINING_STATE_COMPLETED, TRAINING_STATE_ERROR)


@dataclass(frozen=True)
class Round:
    """What a round asks for.

    Attributes:
        training_id: UUID of the training.
        number: Number of the round, from 0.
        kind: "TRAIN", "EVALUATE" or "SWAG".
        model_version: Version of the model that is handed over: updates of the global model so far.
        deadline: When the round ends at the latest, in UTC; None means without end.
        fed_prox_mu: Add mu / 2 * ||w - w_global||^2 to the loss; 0.0 unless the aggregation is FedProx.
        metric_names: Metrics that an evaluation has to report.
        local_rounds: How many local rounds to train before returning; above 1 in daisy chaining (FedDc) only.
        dealt: Whether the model that is handed over is another participant's local one (FedDc).
        swag_rank: How many deviations a SWAG round wants: Moments(round.swag_rank).
        attempt: Which try of the round it is, from 1: one that misses its deadline may be repeated.
        update_precision: "FULL", or "FLOAT16" or "BFLOAT16" if the update may be sent as differences in half precision:
            `participate` does that by itself.
    """

    training_id: str
    number: int
    kind: str
    model_version: int
    deadline: datetime | None = None
    fed_prox_mu: float = 0.0
    metric_names: tuple[str, ...] = ()
    local_rounds: int = 1
    dealt: bool = False
    swag_rank: int = 0
    attempt: int = 1
    update_precision: str = "FULL"


@dataclass(frozen=True)
class Update:
    """What training a model gave.

    Attributes:
        model: Tensors with the names, shapes and dtypes of the round's model; numpy arrays or torch tensors.
        num_examples: Examples that it was trained on, its weight; from 1.
        metrics: Finite numbers to keep with the update.
    """

    model: StateDict
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks what would otherwise only show while it is sent.

        Raises:
            TypeError: num_examples is no whole number.
        """
        try:
            operator.index(self.num_examples)
        except TypeError:
            raise TypeError(f"num_examples must be a whole number, not {self.num_examples!r}") from None


@dataclass(frozen=True)
class Participation:
    """How taking part in a training ended.

    Attributes:
        training_id: UUID of the training.
        model_id: UUID of the trained model.
        model_version: Its last version.
        rounds: How many of this participant's updates and reports were accepted.
    """

    training_id: str
    model_id: str
    model_version: int
    rounds: int


Result: TypeAlias = Update | tuple[StateDict, int] | tuple[StateDict, int, Mapping[str, float]]
Train: TypeAlias = Callable[[dict[str, Any], Round], Result]
Evaluate: TypeAlias = Callable[[dict[str, Any], Round], tuple[Mapping[str, float], int]]


class Participant(UserCalls, TrainingCalls, RoundCalls):
    """One run of `Client.participate`, which documents it."""

    def __init__(
        self,
        rpc: Rpc,
        train: Train,
        evaluate: Evaluate | None,
        swag: Train | None,
        *,
        training_id: str | None,
        until_finished: bool,
        framework: Framework,
        cache: ModelCache,
        full_updates: bool = False,
    ) -> None:
        """Takes the arguments of `Client.participate`."""
        self._rpc = rpc
        self._user_id = ""
        self._train = train
        self._evaluate = evaluate
        self._swag = swag
        self._training_id = training_id or ""
        self._until_finished = until_finished or bool(training_id)
        self._framework = framework
        self._rounds: dict[str, int] = {}
        self._cache = cache
        self._full_updates = full_updates

    def run(self) -> Participation:
        """Takes part until the end."""
        keep_freed(LARGEST, KEPT)
        self._user_id = self._patiently(self.myself).user_id
        # What was over before is no news: a subscription to all trainings may begin with it.
        over = set() if self._training_id else self._patiently(self._over)
        while True:
            try:
                subscription = Subscription(self._rpc, self._training_id)
                for event in subscription:
                    if event.training_id not in over:
                        result = self._handle(event, is_live=subscription.is_live)
                        if result is not None:
                            return result
                raise TrainingNotFound(
                    grpc.StatusCode.NOT_FOUND,
                    "TRAINING_NOT_FOUND",
                    f"The events of training {self._training_id} ended without a last one.",
                )
            except CursorExpired as error:
                logger.warning("Starting again at the current round: %s", error)

    def _over(self) -> set[str]:
        return {training.training_id for training in self.trainings("CLIENT") if training.state in _ENDED}

    def _handle(self, event: Event, *, is_live: bool) -> Participation | None:
        kind = event.WhichOneof("payload")
        if kind == "round_started":
            self._take_part(event.training_id, event.round_started, is_live=is_live)
            return None
        if kind == "round_extended":
            number, attempt = event.round_extended.round, event.round_extended.attempt
            logger.info("Round %d of training %s is repeated: try %d", number, event.training_id, attempt)
            return None
        error = from_event(event)
        if kind == "client_removed" and event.client_removed.client_id == self._user_id:
            error = RemovedFromTraining(
                grpc.StatusCode.ABORTED,
                "CLIENT_REMOVED",
                f"This participant was removed from training {event.training_id}.",
                {"training_id": event.training_id},
            )
        rounds = self._rounds.pop(event.training_id, 0) if error or kind in LAST else 0
        if error is not None:
            if self._until_finished:
                raise error
            logger.warning("Training %s goes on without this participant, or not at all: %s", event.training_id, error)
        if kind != "training_finished":
            return None
        finished = event.training_finished
        logger.info("Training %s is finished: model version %d", event.training_id, finished.model_version)
        result = Participation(event.training_id, finished.model_id, finished.model_version, rounds)
        return result if self._until_finished else None

    def _take_part(self, training_id: str, started: RoundStarted, *, is_live: bool) -> None:
        if started.submitted:
            logger.info("This participant is done with round %d of training %s.", started.round, training_id)
            return
        try:
            if not is_live and self._is_over(training_id, started):
                logger.info("Round %d of training %s is over already.", started.round, training_id)
                return
            self._do(training_id, started)
            self._rounds[training_id] = self._rounds.get(training_id, 0) + 1
        except _TOO_LATE as error:
            logger.warning("Round %d of training %s goes on without this: %s", started.round, training_id, error)

    def _is_over(self, training_id: str, started: RoundStarted) -> bool:
        """Spares the work for a round that was closed while this participant was away or busy."""
        training: Training = self._patiently(lambda: self.get_training(training_id))
        return training.state in _ENDED or training.round > started.round

    def _do(self, training_id: str, started: RoundStarted) -> None:
        round_ = _round(training_id, started)
        logger.info("Round %d of training %s: %s", round_.number, training_id, round_.kind)
        if round_.kind == "TRAIN":
            self._submit(round_, self._train(self._fetch(round_, started.model), round_), started.model.sha256)
        elif round_.kind == "SWAG":
            collect = self._swag or self._collect
            self._submit(round_, collect(self._fetch(round_, started.model), round_))
        elif round_.kind == "EVALUATE" and self._evaluate is not None:
            metrics, num_examples = _report(self._evaluate(self._fetch(round_, started.model), round_))
            self._patiently(lambda: self.submit_metrics(training_id, round_.number, metrics, num_examples))
        else:
            need = "an evaluate function: participate(train, evaluate)" if round_.kind == "EVALUATE" else "a newer SDK"
            raise UnsupportedRound(
                grpc.StatusCode.UNIMPLEMENTED,
                "UNSUPPORTED_ROUND",
                f"Round {round_.number} of training {training_id} has the kind {round_.kind}, which needs {need}.",
                {"training_id": training_id},
            )

    def _submit(self, round_: Round, result: Result, model_sha256: str = "") -> None:
        update = _update(result)
        payload = self._differences(round_, update.model, model_sha256) or Payload.of(update.model)
        self._submit_payload(
            round_.training_id, round_.number, payload, update.num_examples, update.metrics, attempts=None
        )

    def _differences(self, round_: Round, update: StateDict, model_sha256: str) -> Payload | None:
        """Tells an update in half precision, if the round takes that and the model's file is here to compare with."""
        if self._full_updates or round_.update_precision not in HALF_DTYPES:
            return None
        model = self._cache.open(model_sha256)
        if model is None:
            return None
        try:
            return Payload.of_tensors(differences(update, model, round_.update_precision))
        except NotRepresentable as reason:
            logger.warning("The update of round %d is sent in full: %s", round_.number, reason)
            return None

    def _collect(self, model: dict[str, Any], round_: Round) -> Update:
        """Trains on and on, and looks at the weights each time."""
        moments = Moments(round_.swag_rank)
        # The first deviation from the mean so far is always zero.
        for _ in range(max(SNAPSHOTS, round_.swag_rank + 1)):
            update = _update(self._train(model, round_))
            moments.add(update.model)
            model = copied(update.model, self._framework)
        return Update(moments.update(), update.num_examples, update.metrics)

    def _fetch(self, round_: Round, info: ModelInfo) -> dict[str, Any]:
        """Downloads the model unless it is in the cache; reads it anew, as the user may change the arrays."""
        if round_.dealt:
            return self.download_dealt_model(
                round_.training_id, round_.number, framework=self._framework, attempts=None
            )
        known = self._cache.load(info.sha256, self._framework)
        if known is not None:
            return known
        arrival = SafetensorsReader(self._framework)
        with self._cache.keeping(info.sha256) as kept:
            download(
                self._rpc,
                self._rpc.models.DownloadModel,
                lambda offset, _: DownloadModelRequest(
                    model_id=info.model_id, version=info.version, offset=offset, packing=self._rpc.packing
                ),
                Tee(arrival, kept),
                attempts=None,
            )
        return arrival.tensors()

    def _patiently(self, call: Callable[[], Response]) -> Response:
        """Repeats a call until the server is there to answer it."""
        return self._rpc.retrying(None)(call)


def _round(training_id: str, started: RoundStarted) -> Round:
    known = started.kind in RoundKind.values()
    return Round(
        training_id=training_id,
        number=started.round,
        kind=RoundKind.Name(started.kind).removeprefix("ROUND_KIND_") if known else str(started.kind),
        model_version=started.model.version,
        deadline=_deadline(training_id, started) if started.HasField("deadline") else None,
        fed_prox_mu=started.aggregation.fed_prox.mu,
        metric_names=tuple(started.metric_names),
        local_rounds=started.local_rounds,
        dealt=started.dealt,
        swag_rank=started.swag.rank,
        attempt=max(1, started.attempt),
        update_precision=_precision(started.update_precision),
    )


def _precision(value: UpdatePrecision.ValueType) -> str:
    """A precision that this SDK does not know is one that need not be used."""
    known = value in UpdatePrecision.values() and value != UPDATE_PRECISION_UNSPECIFIED
    return UpdatePrecision.Name(value).removeprefix("UPDATE_PRECISION_") if known else "FULL"


def _deadline(training_id: str, started: RoundStarted) -> datetime:
    try:
        return started.deadline.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise UnsupportedRound(
            grpc.StatusCode.UNIMPLEMENTED,
            "UNSUPPORTED_ROUND",
            f"Round {started.round} of training {training_id} has a deadline that is no time: {error}",
            {"training_id": training_id},
        ) from error


def _update(result: Result) -> Update:
    if isinstance(result, Update):
        return result
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise TypeError(
            f"train must return an Update, or (model, num_examples), or (model, num_examples, metrics); it returned"
            f" a {_kind(result)}"
        )
    return Update(*result)


def _report(result: tuple[Mapping[str, float], int]) -> tuple[Mapping[str, float], int]:
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], Mapping):
        raise TypeError(f"evaluate must return (metrics, num_examples); it returned a {_kind(result)}")
    return result


def _kind(value: object) -> str:
    return f"tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__
