"""One round of a participant: fetch the model, call the user's function, submit the result."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, SupportsFloat, TypeVar

from fedround.v1.event_pb2 import ModelInfo, RoundStarted
from fedround.v1.round_pb2 import UpdateReceipt, UpdateSpec
from fedround.v1.user_pb2 import User
from fedround_client.casting import Caster
from fedround_client.differences import NotRepresentable, difference_sources
from fedround_client.errors import RoundNotOpen, UpdateStale
from fedround_client.logs import get_logger
from fedround_client.metrics import MetricValue, split_metrics
from fedround_client.participation import Callbacks, Round, Update, as_report, as_update
from fedround_client.payload import Payload, Progress
from fedround_client.progress import transfer_log
from fedround_client.round import RoundCalls
from fedround_client.round_control import Change, LocalTraining
from fedround_client.round_controls import RULES, open_control, prepared
from fedround_client.round_model import RoundModel, RoundModels
from fedround_client.round_over import OverCheck, RoundOver, is_asynchronous
from fedround_client.round_request import read_round, unsupported
from fedround_client.rpc import Rpc
from fedround_client.safetensors_stream import ArraySource
from fedround_client.server_clock import ServerClock
from fedround_client.state_dict import model_path
from fedround_client.swag_moments import Moments
from fedround_client.tensor_selection import TensorSelection, read_file
from fedround_client.tensor_types import Framework
from fedround_client.tensors import copy_state, dtypes_of, metadata_of
from fedround_client.transport import TensorPrecision, Transport

logger = get_logger(__name__)

SNAPSHOTS = 10
"""How many snapshots of the weights a SWAG round takes without a swag function."""

ACTIVITIES = {"TRAIN": "training", "EVALUATE": "evaluating", "SWAG": "collecting weights for the posterior"}
"""What a participant does in a round of each kind, for messages."""

TORCH_HINT = (
    'The models of this training are numpy arrays. For torch tensors write participate(..., framework="torch").'
)

Result = TypeVar("Result")


@dataclass(frozen=True)
class _KeptUpdate:
    """An update of an asynchronous training, and the round whose model it was trained from."""

    round_: Round
    update: Update
    payload: Payload


class RoundRunner(RoundCalls):
    """Runs the rounds of a participant.

    Attributes:
        server_clock: What is known of the server's clock.
    """

    def __init__(
        self,
        rpc: Rpc,
        callbacks: Callbacks,
        *,
        framework: Framework | None,
        models: RoundModels,
        full_updates: bool = False,
    ) -> None:
        """Creates a runner.

        Args:
            rpc: Calls the server.
            callbacks: The user's functions.
            framework: Framework of the models that the functions get; None for that of the training's first model.
            models: Fetches the models of rounds.
            full_updates: Send updates in full even if the round accepts differences.
        """
        self._rpc = rpc
        self._callbacks = callbacks
        self._framework = framework
        self._models = models
        self._full_updates = full_updates
        self.server_clock = ServerClock(rpc.clock)
        self._name = ""
        self._over: OverCheck | None = None
        # In which framework the functions have got the global model, by training id.
        self._frameworks: dict[str, Framework] = {}
        self._caster = Caster()
        # By training id, an update of an asynchronous training for which no round was open.
        self._kept: dict[str, _KeptUpdate] = {}

    def participate_as(self, user: User) -> None:
        """Names the user whose private tensors are kept."""
        self._models.user_id = user.user_id

    @property
    def can_evaluate(self) -> bool:
        """Whether it has a function for evaluation rounds."""
        return self._callbacks.evaluate is not None

    def keeps_update(self, training_id: str) -> bool:
        """Returns whether an update waits for the next round of an asynchronous training."""
        return training_id in self._kept

    def forget(self, training_id: str) -> None:
        """Forgets the update that waits for the next round of a training."""
        self._kept.pop(training_id, None)

    def forget_all(self) -> None:
        """Forgets all updates that wait for a next round."""
        self._kept.clear()

    def run(self, training_id: str, started: RoundStarted, name: str) -> int:
        """Runs a round until its result is accepted, for as long as the server takes to answer.

        In an asynchronous training, an update that found no open round before is sent first; if it is accepted, that is
        all.

        Args:
            training_id: UUID of the training.
            started: The event that started the round.
            name: The name of the round for people, which begins messages about it.

        Returns:
            The number of the round in which the result counts.

        Raises:
            UnsupportedRound: This SDK, or the participant's functions, cannot run such a round.
            RoundOver: A function has learnt that the round is over: nothing was sent.
            RoundNotOpen: The round is over. In an asynchronous training no round is open: the update is kept for the
                next one.
            FedroundError: The server answered with an error that is not transient.
        """
        self._name, self._over = name, OverCheck(self._rpc, training_id, started)
        kept = self._kept.pop(training_id, None) if is_asynchronous(started) else None
        if kept is not None and (accepted := self._send_kept(kept)) is not None:
            return accepted
        round_ = replace(read_round(training_id, started), is_over=self._over)
        logger.info("%s: %s", name, ACTIVITIES.get(round_.kind, round_.kind))
        evaluate = self._callbacks.evaluate
        if round_.kind == "TRAIN":
            return self._train(round_, started)
        if round_.kind == "SWAG":
            collect = self._callbacks.swag or self._collect_moments
            model = self._fetch(round_, started)
            round_ = self._with_control(round_, started, model)
            update = as_update(self._call(collect, model.tensors, round_))
            self._submit(round_, update, Payload.of(update.model))
        elif round_.kind == "EVALUATE" and evaluate is not None:
            metrics, num_examples = as_report(self._call(evaluate, self._fetch(round_, started).tensors, round_))
            _warn_of_not_finite(metrics)
            self._rpc.retrying(None)(self.submit_metrics, training_id, round_.number, metrics, num_examples)
        else:
            need = "an evaluate function: participate(train, evaluate)" if round_.kind == "EVALUATE" else "a newer SDK"
            raise unsupported(training_id, round_.number, f"has the kind {round_.kind}, which needs {need}.")
        return round_.number

    def _train(self, round_: Round, started: RoundStarted) -> int:
        """Runs a round of training, and returns the round in which the update counts."""
        model = self._fetch(round_, started)
        round_ = self._with_control(round_, started, model)
        dtypes = dtypes_of(model.tensors)
        update = as_update(self._call(self._callbacks.train, dict(model.tensors), round_))
        update = self._with_inputs(round_, update, started)
        payload, change = self._payload(round_, update, dtypes, model, started.model)
        if is_asynchronous(started):
            return self._submit_buffered(_KeptUpdate(round_, update, payload))
        if not change.own:
            return self._submit(round_, update, payload).round
        store = self._models.control_store(round_.training_id)
        receipt = self._submit(round_, update, payload, prepare=prepared(store, round_.number, change))
        store.accept(round_.number)
        return receipt.round

    def _call(
        self, function: Callable[[dict[str, Any], Round], Result], model: dict[str, Any], round_: Round
    ) -> Result:
        """Calls a function of the user with the round's model.

        Raises:
            RoundOver: It has learnt that the round is over.
        """
        try:
            with self._rpc.traces.span(round_.kind.lower()):
                result = function(model, round_)
        except Exception as error:
            if "torch" in sys.modules and not metadata_of(model) and "ndarray" in str(error):
                error.add_note(TORCH_HINT)
            raise
        if self._over is not None and self._over.was_over:
            raise RoundOver
        return result

    def _fetch(self, round_: Round, started: RoundStarted) -> RoundModel:
        """Returns the round's model as new arrays, which the user may change."""
        training_id = round_.training_id
        if round_.assigned:
            # The file is another participant's, who may use another framework.
            tensors = self.download_assigned_model(
                training_id,
                round_.number,
                framework=self._frameworks.get(training_id, self._framework),
                attempts=None,
                progress=self._transfer_log("downloading"),
            )
            return RoundModel(tensors, frozenset(tensors), TensorSelection())
        model = self._models.fetch(training_id, started, self._transfer_log("downloading"))
        self._frameworks[training_id] = "torch" if metadata_of(model.tensors) else "numpy"
        return model

    def _with_control(self, round_: Round, started: RoundStarted, model: RoundModel) -> Round:
        """Returns a round with the control variate of the participant, if the rule of the aggregation has one."""
        if round_.algorithm not in RULES:
            return round_
        framework = self._frameworks[round_.training_id]
        control = open_control(
            started,
            model,
            self._models.control_store(round_.training_id),
            framework,
            load_start=lambda: self._fetch(round_, started).tensors,
            fetch_server=lambda: self.download_control(
                round_.training_id,
                round_.number,
                framework=framework,
                attempts=None,
                progress=self._transfer_log("downloading the control variate"),
            ),
            was_accepted=self._was_accepted,
        )
        return replace(round_, control=control)

    def forget_update(self, training_id: str, number: int) -> None:
        """Forgets what the update of a round has changed: the server has lost it."""
        # Without a folder nothing was kept.
        with suppress(RuntimeError, ValueError):
            self._models.control_store(training_id).forget(number)

    def forget_training(self, training_id: str) -> None:
        """Removes what is not needed once a training has ended."""
        with suppress(RuntimeError, ValueError):
            self._models.control_store(training_id).remove()

    def _with_inputs(self, round_: Round, update: Update, started: RoundStarted) -> Update:
        """Returns an update with what the rules of the aggregation and of its shadows need to know.

        Raises:
            ValueError: The update and the participant's functions do not say it.
        """
        if not update.num_examples:
            return update
        rules = {one.WhichOneof("algorithm") for one in (started.aggregation, *started.aggregation.shadow)}
        if "fed_nova" in rules and update.local_steps is None:
            raise ValueError(
                "FedNova needs the number of local optimizer steps: return Update(model, num_examples, local_steps=...)"
            )
        if "q_fed_avg" not in rules or update.initial_loss is not None:
            return update
        # Fetched anew: the train function may have changed the arrays that it got.
        evaluate = self._callbacks.evaluate
        loss: object = None
        if evaluate is not None:
            model = self._fetch(round_, started).tensors
            loss = as_report(self._call(evaluate, model, round_))[0].get("loss")
        if not isinstance(loss, SupportsFloat):
            raise ValueError(
                "QFedAvg needs the loss of the round's model before training: return Update(model, num_examples,"
                ' initial_loss=...), or have evaluate return a metric "loss"'
            )
        return replace(update, initial_loss=float(loss))

    def _submit_buffered(self, made: _KeptUpdate) -> int:
        """Submits an update of an asynchronous training, and returns the round in which it counts.

        Raises:
            RoundNotOpen: No round is open: the update is kept.
            FedroundError: The server rejects it.
        """
        round_ = made.round_
        try:
            return self._submit(round_, made.update, made.payload, base_version=round_.model_version).round
        except RoundNotOpen:
            self._kept[round_.training_id] = made
            raise

    def _send_kept(self, kept: _KeptUpdate) -> int | None:
        """Submits an update that found no open round before; returns None if it is too old by now."""
        logger.info("%s: sending the update from version %d", self._name, kept.round_.model_version)
        try:
            return self._submit_buffered(kept)
        except UpdateStale as error:
            logger.warning("%s: the update is discarded: %s", self._name, error)
            return None

    def _submit(
        self,
        round_: Round,
        update: Update,
        payload: Payload,
        *,
        base_version: int | None = None,
        prepare: Callable[[UpdateSpec], None] | None = None,
    ) -> UpdateReceipt:
        _warn_of_not_finite(update.metrics)
        sent = self._rpc.clock.time()
        receipt = self._submit_payload(
            round_.training_id,
            round_.number,
            payload,
            update.num_examples,
            update.metrics,
            local_steps=update.local_steps,
            initial_loss=update.initial_loss,
            base_version=base_version,
            attempts=None,
            progress=self._transfer_log("uploading"),
            prepare=prepare,
        )
        self.server_clock.learn(sent, receipt.accept_time)
        return receipt

    def _transfer_log(self, activity: str) -> Progress | None:
        return transfer_log(self._rpc.clock, f"{self._name}: {activity}")

    def _payload(
        self, round_: Round, update: Update, dtypes: Mapping[str, str], model: RoundModel, info: ModelInfo
    ) -> tuple[Payload, Change]:
        """Returns an update in the dtypes of the round's model, or as differences; a file of all tensors as it is.

        Keeps the private tensors. Also returns what becomes of the control variate.
        """
        state, control = update.model, round_.control
        if isinstance(state, (str, PathLike)):
            if not model.selection.is_partial and control is None:
                return Payload.of(state), Change()
            state = read_file(model_path(state), self._framework)
        sent, kept = model.of_update(state)
        self._models.keep(model, kept, state)
        tensors, change = self._caster.cast(sent, dtypes), Change()
        if control is not None:
            local = LocalTraining(update.num_examples, update.local_steps, update.learning_rate)
            change = control.change({one.info.name: one for one in tensors}, local)
        differences = self._differences_payload(round_, tensors, change, model.selection, info)
        return differences or Payload.of_tensors([*tensors, *change.sent], metadata_of(state)), change

    def _differences_payload(
        self,
        round_: Round,
        update: Iterable[ArraySource],
        change: Change,
        selection: TensorSelection,
        info: ModelInfo,
    ) -> Payload | None:
        """Returns the update as differences from the model; None if the round or the update does not allow it.

        It is computed from the model's file, so it also needs that in the cache.
        """
        default = TensorPrecision(round_.update_precision, round_.stochastic_rounding)
        transport = Transport(default, round_.tensor_precisions)
        if self._full_updates or transport.is_full:
            return None
        model = self._models.open(info, selection)
        if model is None:
            return None
        try:
            return Payload.of_tensors([*difference_sources(update, model, transport), *change.sent])
        except NotRepresentable as reason:
            logger.warning("%s: the update is sent in full: %s", self._name, reason)
            return None

    def _collect_moments(self, model: dict[str, Any], round_: Round) -> Update:
        """Calls the train function repeatedly, and adds the weights after each call."""
        moments = Moments(round_.swag_rank)
        # One more than the rank, since the first deviation from the mean so far is always zero.
        for _ in range(max(SNAPSHOTS, round_.swag_rank + 1)):
            update = as_update(self._callbacks.train(model, round_))
            moments.add(update.model)
            model = copy_state(update.model, self._framework)
        return Update(moments.update(), update.num_examples, update.metrics)


def _warn_of_not_finite(metrics: Mapping[str, MetricValue]) -> None:
    for name, value in split_metrics(metrics).metrics.items():
        if not math.isfinite(value):
            logger.warning("The metric %r is %s: it is sent, and left out of the mean.", name, value)
