"""The calls of TrainingService, and waiting for the result of a training."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Literal, TypeAlias

from fedround.v1 import training_pb2
from fedround.v1.event_pb2 import Event, ParticipantFailed
from fedround.v1.round_pb2 import (
    ROUND_STATE_ABANDONED,
    ROUND_STATE_DONE,
    ROUND_STATE_PENDING,
    GetRoundRequest,
    Round,
)
from fedround.v1.training_pb2 import Cohort, CreateTrainingRequest, RoundPolicy, Training, TrainingSpec
from fedround_client import config as messages
from fedround_client import options
from fedround_client.aggregation import AggregationOption
from fedround_client.config import ConfigOption
from fedround_client.errors import FedroundError, NotActor, TrainingFailed, from_event
from fedround_client.logs import get_logger
from fedround_client.options import (
    EvaluationName,
    IntegerTensorsName,
    OnFailureName,
    Selection,
    UncertaintyOption,
)
from fedround_client.payload import ModelSource, Payload, Progress
from fedround_client.progress import WaitLog, awaited_text
from fedround_client.round_number import planned_rounds, round_text
from fedround_client.rpc import Rpc
from fedround_client.subscription import Subscription
from fedround_client.transport import PrecisionName, PrecisionOption, precision_message, rule_messages
from fedround_client.upload import upload

logger = get_logger(__name__)

ASK_SECONDS = 5.0
"""How long `wait` asks what a training waits for, after its timeout."""
MAX_NAMES = 10
"""How many missing participants an error names."""

TrainingRoleName: TypeAlias = Literal["ACTOR", "CLIENT", "VIEWER"]


class TrainingCalls:
    """The calls of TrainingService, and waiting for the result of a training."""

    _rpc: Rpc

    def create_training(
        self,
        model: ModelSource | None = None,
        *,
        name: str,
        target_num_updates: int,
        model_id: str = "",
        model_version: int | None = None,
        architecture: str = "",
        description: str = "",
        metric_names: Iterable[str] = (),
        client_ids: Iterable[str] = (),
        aggregation: AggregationOption | None = None,
        uncertainty: UncertaintyOption | None = None,
        min_updates: int = 0,
        deadline: float | None = None,
        max_retries: int = 0,
        on_failure: OnFailureName = "CONTINUE",
        absent_after: float | None = None,
        wait_after_min: float | None = None,
        cohort: Cohort | None = None,
        evaluation: EvaluationName | None = None,
        evaluation_policy: RoundPolicy | None = None,
        selection: Selection | None = None,
        keep_versions: int = 0,
        keep_update_rounds: int | None = None,
        max_num_examples: int = 0,
        max_update_norm: float = 0.0,
        update_precision: PrecisionName = "FULL",
        tensor_precisions: Mapping[str, PrecisionOption] | None = None,
        stochastic_rounding: bool = False,
        allow_non_finite_buffers: bool = False,
        integer_tensors: IntegerTensorsName = "HEAVIEST",
        trainable: Iterable[str] = (),
        private: Iterable[str] = (),
        external_base_sha256: str = "",
        config: Mapping[str, ConfigOption] | None = None,
        client_config: Mapping[str, Mapping[str, ConfigOption]] | None = None,
        allow_relays: bool = False,
        request_id: str | None = None,
        progress: Progress | None = None,
    ) -> Training:
        """Creates a training; resumes the upload of its model after a lost connection. For actors.

        Args:
            model: The initial model: a state dict of numpy arrays, torch tensors or arrays of other libraries, or the
                path of a safetensors file.
            name: A name for people, at most 200 characters.
            target_num_updates: How often the training updates the global model; at least 1, or 0 to have a stored model
                evaluated by metric_names.
            model_id: Instead of `model`: UUID of a stored model of yours.
            model_version: The version of model_id to start from; None for the latest.
            architecture: The architecture that `predict` uses, by the name that the operator registered.
            description: A description for people, at most 10,000 characters.
            metric_names: Metrics that every evaluation report must contain.
            client_ids: UUIDs of the users to register as participants.
            aggregation: How updates are aggregated: a rule, FedAvg() by default, FedAdam(...) or the like, or several
                stages: aggregate(TrimmedMean(beta=0.2), clipping=FixedClipping(norm=1)).
            uncertainty: How the uncertainty of predictions is estimated: McDropout(...), Swag(...), for which the
                training collects moments in SWAG rounds, or Ensemble(...); not at all by default.
            min_updates: Number of updates that closes a round, after a short wait; 0 to wait for every participant.
            deadline: Seconds that a round may stay open; None for no limit.
            max_retries: How often a round that misses its deadline is repeated with the updates that it has. After
                that, the training ends in the state ERROR.
            on_failure: Whether a round continues without a participant that reports a failure ("CONTINUE"), or the
                training ends in the state ERROR ("FAIL").
            absent_after: Seconds that a participant may be without a connection before the open round no longer waits
                for it; None for no limit.
            wait_after_min: Seconds that a round with min_updates waits for those that are under way; 0 not to wait. By
                default a tenth of the median time of the training's earlier rounds, and at least 5 seconds.
            cohort: Who takes part in each round: Cohort(fraction=0.1), Cohort(size=5, over_selection=1.5,
                labels={"gpu": "yes"}), Cohort(min_available=3), for example; everybody by default.
            evaluation: When participants evaluate the model, if there are metric_names: "EVERY_ROUND", "FINAL_ONLY" or
                "NEVER". By default after every round, and in an asynchronous training the last version only.
            evaluation_policy: When evaluation rounds close; by default as other rounds, and with the reports of
                everybody if there is a selection, which only the deadline of a round shortens.
            selection: Which version is tagged `best`, and early stopping; None for neither.
            keep_versions: How many of the latest versions keep their files, besides the tagged ones; 0 for all.
            keep_update_rounds: Of how many of the latest rounds the files of updates are kept once they are aggregated;
                0 for none, None for all. Replays need them.
            max_num_examples: Largest num_examples of an update; 0 for the server's limit.
            max_update_norm: Largest L2 norm of the difference between an update and the model that it started from;
                0 for no limit.
            update_precision: With "FLOAT16" or "BFLOAT16", participants send float32 and float64 tensors as differences
                from the round's model in half precision: half the bytes of float32. With "INT8" they send integers and
                a scale for every 256 of them: 26 % of the bytes. Not with FedDc.
            tensor_precisions: Precisions of some of the tensors by globs of their names, such as {"*.bias": "FULL",
                "encoder.*": "INT8"}, or TensorPrecision("INT8", block_size=64); the first glob that matches applies.
            stochastic_rounding: Round these differences at random, with exact expected values, not to the nearest.
            allow_non_finite_buffers: Accept Inf and NaN in the model, for example in the buffer of a mask, and in
                updates where the model has them; every version keeps them exactly. Not with Swag.
            integer_tensors: How tensors of integers and booleans are aggregated. "HEAVIEST", the default: taken from
                the update with the most examples. "MEAN": averaged, weighted by the numbers of examples, and rounded
                to the nearest integer, halves up; a boolean is the majority. BatchNorm's num_batches_tracked always
                gets the maximum.
            trainable: Globs of the names of the tensors that updates contain, such as "*.lora_?"; the others keep the
                values of the first version, and are neither sent nor stored again. By default all but the private ones.
            private: Globs of the names of tensors that are never sent: each participant keeps its own.
            external_base_sha256: SHA-256 of a safetensors file of other tensors that the participants have, and the
                server never gets: `participate(base=...)`. `model` has only the tensors that the server may know.
            config: Values that the participants get with each round, by name (`round.config`): numbers, texts, bools,
                or schedules that the server resolves: CosineSchedule(...), ExponentialSchedule(...), or a mapping such
                as {0: 0.1, 30: 0.01}, a value from a number of model updates on.
            client_config: Values of single participants on top of config, by their user ids, which must be in
                client_ids. Each participant gets its own only.
            allow_relays: Whether participants may be relays, which send the exact sum of the updates of participants of
                their own. Needs FedAvg or FedProx, with or without a server optimizer.
            request_id: UUID of the request: a repeated one returns the training that the first one created. Random by
                default.
            progress: Called with the bytes sent and the bytes in all.

        Raises:
            TypeError: Both or none of model and model_id are given, or one string in place of a list.
            TensorError: The model is none, or cannot be written as safetensors; the message says what to write.
            ModelFormat: The file is not safetensors, or not in the form that the server accepts.
            TypeError, ValueError: A value of a configuration has another type, or is an integer of more than 64 bits.
            AggregationIncompatible: Stages of the aggregation do not go together, or it needs more updates than a round
                closes with.
            UnknownClients: A client id is not the id of a user, or one in client_config is not in client_ids; nothing
                was created.
            FieldInvalid: Another field is not valid; field_violations names it.
        """
        if (model is None) == (not model_id):
            raise TypeError("create_training needs either a model or the model_id of a stored one.")
        for field, value in {"metric_names": metric_names, "client_ids": client_ids}.items():
            if isinstance(value, str):
                raise TypeError(f"{field} is a list of strings, not one: write [{value!r}].")
        payload = Payload.of(model, names_framework=True) if model is not None else Payload.empty()
        upload_id, stages = str(uuid.uuid4()) if model is not None else "", options.aggregation(aggregation)
        spec = TrainingSpec(
            name=name,
            description=description,
            model_id=model_id,
            model_version=model_version,
            architecture=architecture,
            model_sha256=payload.sha256,
            model_size_bytes=payload.size_bytes,
            target_num_updates=target_num_updates,
            metric_names=metric_names,
            client_ids=client_ids,
            aggregation=stages,
            uncertainty=options.uncertainty(uncertainty),
            round_policy=options.round_policy(
                min_updates, deadline, max_retries, on_failure, absent_after, wait_after_min
            ),
            evaluation_policy=evaluation_policy,
            cohort=cohort,
            evaluation=options.evaluation(evaluation, stages),
            selection=options.selection(selection),
            keep_versions=keep_versions,
            keep_update_rounds=keep_update_rounds,
            max_num_examples=max_num_examples,
            max_update_norm=max_update_norm,
            update_precision=precision_message(update_precision),
            tensor_precisions=rule_messages(tensor_precisions or {}, stochastic_rounding=stochastic_rounding),
            stochastic_rounding=stochastic_rounding,
            allow_non_finite_buffers=allow_non_finite_buffers,
            integer_tensors=training_pb2.IntegerTensors.Value(f"INTEGER_TENSORS_{integer_tensors}"),
            tensors=options.tensors(trainable, private, external_base_sha256),
            config=messages.values(config or {}),
            client_config=messages.clients(client_config or {}),
            allow_relays=allow_relays,
            request_id=request_id or str(uuid.uuid4()),
        )
        return upload(
            self._rpc,
            self._rpc.trainings.CreateTraining,
            payload,
            upload_id,
            lambda offset: CreateTrainingRequest(spec=spec, upload_id=upload_id, offset=offset),
            CreateTrainingRequest,
            progress=progress,
        ).training

    def start_training(self, training_id: str) -> Training:
        """Starts a training: opens its first round, once as many participants are connected as its cohort asks for.

        Raises:
            NoParticipants: The training has no participants, or fewer than min_updates.
            CohortImpossible: Too few participants for its cohort are registered, or none has the labels.
            TrainingNotInitial: It was started before.
        """
        request = training_pb2.StartTrainingRequest(training_id=training_id, request_id=str(uuid.uuid4()))
        return self._rpc.unary(self._rpc.trainings.StartTraining, request).training

    def get_training(self, training_id: str) -> Training:
        """Returns a training that you created or participate in; a viewer any.

        Raises:
            TrainingNotFound: You have no such training.
        """
        request = training_pb2.GetTrainingRequest(training_id=training_id)
        return self._rpc.unary(self._rpc.trainings.GetTraining, request).training

    def trainings(self, role: TrainingRoleName | None = None) -> Iterator[Training]:
        """Iterates over your trainings, the newest first; fetches them page by page.

        Args:
            role: "ACTOR" for those that you created, "CLIENT" for those that you participate in, "VIEWER" for all of
                the server; None for "VIEWER" if you are a viewer, else for "ACTOR".

        Raises:
            RoleRequired: You ask for those of all users, and are no viewer.
        """
        request = training_pb2.GetTrainingsRequest(
            role=training_pb2.TrainingRole.Value(f"TRAINING_ROLE_{role or 'UNSPECIFIED'}")
        )
        for page in self._rpc.pages(self._rpc.trainings.GetTrainings, request):
            yield from page.trainings

    def register_clients(self, training_id: str, client_ids: Iterable[str]) -> Training:
        """Registers users as participants; they join a running training when the next round is opened, or one repeated.

        Raises:
            UnknownClients: An id is not the id of a user; nothing was changed.
            TrainingEnded: The training is over.
        """
        request = training_pb2.RegisterClientsRequest(training_id=training_id, client_ids=client_ids)
        return self._rpc.unary(self._rpc.trainings.RegisterClients, request).training

    def remove_clients(self, training_id: str, client_ids: Iterable[str]) -> Training:
        """Removes participants; their updates in the open round are discarded. Participants may remove themselves.

        Those that have left already are skipped.

        Raises:
            UnknownClients: An id never was the id of a participant; nothing was changed.
            LastParticipant: A running training needs at least one participant.
            TrainingEnded: The training is over.
        """
        request = training_pb2.RemoveClientsRequest(training_id=training_id, client_ids=client_ids)
        return self._rpc.unary(self._rpc.trainings.RemoveClients, request).training

    def remove_training(self, training_id: str, *, force: bool = False) -> None:
        """Removes a training; its model and all versions stay. Does nothing if you have removed it before.

        Raises:
            TrainingRunning: It is running, and force is False.
        """
        request = training_pb2.RemoveTrainingRequest(training_id=training_id, force=force)
        self._rpc.unary(self._rpc.trainings.RemoveTraining, request)

    def watch(
        self,
        training_id: str | None = None,
        *,
        resume_after: int | Mapping[str, int] | None = None,
        heartbeats: bool = False,
    ) -> Iterator[Event]:
        """Iterates over events, each once and in order, across lost connections and server restarts.

        Args:
            training_id: UUID of the training; the iteration ends after its last event. None for all of yours, without
                end.
            resume_after: Sequence of the last event that you have (for all trainings: by training id); None to begin
                at the current round, or at the first event if no round was opened yet.
            heartbeats: Whether to yield heartbeats, which the server sends every 20 seconds while there is no event.

        Raises:
            TrainingNotFound: You have no such training.
            CursorExpired: The log does not have that sequence, or the server was restored from a backup since.
        """
        cursors = {training_id or "": resume_after} if isinstance(resume_after, int) else resume_after
        return iter(Subscription(self._rpc, training_id or "", resume_after=cursors, heartbeats=heartbeats))

    def wait(self, training_id: str, timeout: float | None = None) -> Training:
        """Waits until a training is completed, and returns it; logs a warning for each participant that fails.

        It logs at the level INFO which round the training is in, and whom the round waits for.

        Args:
            training_id: UUID of the training.
            timeout: Seconds; None for no limit.

        Raises:
            TimeoutError: It did not end in time; the message says what its round waits for.
            TrainingFailed: It ended in the state ERROR.
            TrainingRemoved: It was removed.
        """
        log = WaitLog(self._rpc, training_id)
        subscription = Subscription(self._rpc, training_id, timeout=timeout, heartbeats=True, begin_again=True)
        try:
            for event in subscription:
                log.add(event)
                error = from_event(event)
                if error is not None:
                    raise self._with_details(error)
                if event.HasField("participant_failed"):
                    logger.warning("%s", describe_failure(event.participant_failed))
        except TimeoutError as error:
            reason = self._waiting_for(training_id) if subscription.is_connected else ""
            raise TimeoutError(f"{error}{reason}") from None
        return self._rpc.retrying(None, sleep=subscription.sleep)(self.get_training, training_id)

    def _waiting_for(self, training_id: str) -> str:
        """Returns a sentence about what a training waits for; an empty text if the server does not say it at once."""
        try:
            request = training_pb2.GetTrainingRequest(training_id=training_id)
            training = self._rpc.unary(self._rpc.trainings.GetTraining, request, ASK_SECONDS).training
            if training.state == training_pb2.TRAINING_STATE_INITIAL:
                return " It has not been started."
            name = round_text(training.round, planned_rounds(training.spec)).capitalize()
            text = f" {name}: {training.updates_arrived} of {training.updates_expected} results have arrived."
            with suppress(NotActor):
                asked = GetRoundRequest(training_id=training_id, round=training.round)
                text = _describe(self._rpc.unary(self._rpc.rounds.GetRound, asked, ASK_SECONDS).round, name)
        except FedroundError:
            return ""
        return text

    def _with_details(self, error: FedroundError) -> FedroundError:
        """Returns the error with the training's own message, which names missing participants to the actor only."""
        if isinstance(error, TrainingFailed):
            with suppress(FedroundError):
                details = self.get_training(error.metadata["training_id"]).error
                if details.reason:
                    return TrainingFailed(error.code, details.reason, details.message, error.metadata)
        return error


def describe_failure(failed: ParticipantFailed) -> str:
    """Returns what an actor has to know of a participant that failed."""
    name = failed.participant_name or failed.participant_id
    message = f": {failed.message}" if failed.message else ""
    return f"Participant {name} failed in {round_text(failed.round)}: {failed.reason}{message}"


def _describe(round_: Round, name: str) -> str:
    """Returns a sentence about what a round waits for, and the names of the missing participants."""
    if round_.state == ROUND_STATE_PENDING:
        return f" {name} is waiting for {awaited_text(round_)}."
    if round_.state in (ROUND_STATE_DONE, ROUND_STATE_ABANDONED):
        return f" {name} is over; the training waits for {round_.waiting_for}."
    missing = [one for one in round_.participants if not one.arrived]
    names = [f"{one.name} ({'connected' if one.subscribed else 'not connected'})" for one in missing[:MAX_NAMES]]
    if len(missing) > MAX_NAMES:
        names.append(f"{len(missing) - MAX_NAMES} more")
    who = f"; missing: {', '.join(names)}" if names else ""
    return f" {name} waits for {round_.waiting_for.rstrip('.')}{who}."
