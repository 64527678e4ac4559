"""Trainings: created, steered and watched by their actor."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Literal, TypeAlias

from fedround.v1 import training_pb2
from fedround.v1.aggregation_pb2 import UpdatePrecision
from fedround.v1.event_pb2 import Event
from fedround.v1.training_pb2 import CreateTrainingRequest, RoundPolicy, Training, TrainingSpec
from fedround_client import options
from fedround_client.errors import FedroundError, TrainingFailed, from_event
from fedround_client.options import AggregationChoice, EvaluationName, PrecisionName, Selection, UncertaintyChoice
from fedround_client.rpc import Rpc, duration
from fedround_client.subscription import Subscription
from fedround_client.transfer import ModelSource, Payload, Progress, upload

TrainingRoleName: TypeAlias = Literal["ACTOR", "CLIENT"]


class TrainingCalls:
    """The calls of TrainingService, and waiting for what comes of a training."""

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
        aggregation: AggregationChoice | None = None,
        uncertainty: UncertaintyChoice | None = None,
        min_updates: int = 0,
        deadline: float | None = None,
        max_retries: int = 0,
        evaluation: EvaluationName = "EVERY_ROUND",
        selection: Selection | None = None,
        keep_versions: int = 0,
        max_num_examples: int = 0,
        max_update_norm: float = 0.0,
        update_precision: PrecisionName = "FULL",
        request_id: str | None = None,
        progress: Progress | None = None,
    ) -> Training:
        """Creates a training; a cut upload goes on where it was. For actors.

        Args:
            model: The initial model: a state dict of numpy arrays or torch tensors, or the path of a safetensors file.
            name: For people, at most 200 characters.
            target_num_updates: How many updates of the global model the training makes, from 1.
            model_id: UUID of a stored model of yours, to train instead of `model`.
            model_version: Which of its versions to start from; None for the latest.
            architecture: What `predict` builds for `model`: a name that the operator registered.
            description: For people, at most 10,000 characters.
            metric_names: Metrics that every evaluation report must carry.
            client_ids: UUIDs of the users to register at once.
            aggregation: How updates become the next model: FedAvg() by default, FedProx(mu=...) or FedDc(...).
            uncertainty: How predictions come with an uncertainty: McDropout(...), Swag(...), for which the training
                collects moments in rounds of their own, or Ensemble(...); none by default.
            min_updates: A round closes with so many updates; 0 waits for every participant.
            deadline: Seconds that a round may stay open; None for any time.
            max_retries: How often a round that misses its deadline is repeated, with the updates that it has; then,
                or with 0, the training ends in ERROR.
            evaluation: When participants evaluate the model, if there are metric_names.
            selection: Which version is tagged `best`, and early stopping; None for neither.
            keep_versions: How many of the latest versions keep their files, besides the tagged ones; 0 for all.
            max_num_examples: The most that an update may claim; 0 for the server's limit.
            max_update_norm: How far an update may be from the model that it started from (L2 norm of the difference);
                0 for any distance.
            update_precision: "FLOAT16" or "BFLOAT16" has participants send float32 and float64 tensors as differences
                from the round's model in half precision: half the bytes of float32. Not with FedDc.
            request_id: UUID that makes a repeated create answer the first one's training; made up by default.
            progress: Told how many bytes of how many are sent.

        Raises:
            TypeError: Both or none of model and model_id are given.
            TensorError: The state dict cannot be written as safetensors.
            ModelFormat: The file is not safetensors as the server takes it.
            UnknownClients: Some client ids are no users; nothing was created.
            FieldInvalid: Something else is refused; field_violations names it.
        """
        if (model is None) == (not model_id):
            raise TypeError("create_training takes either a model or the model_id of a stored one.")
        payload = Payload.of(model) if model is not None else Payload.nothing()
        upload_id = str(uuid.uuid4()) if model is not None else ""
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
            aggregation=options.aggregation(aggregation),
            uncertainty=options.uncertainty(uncertainty),
            round_policy=_policy(min_updates, deadline, max_retries),
            evaluation=training_pb2.Evaluation.Value(f"EVALUATION_{evaluation}"),
            selection=options.selection(selection),
            keep_versions=keep_versions,
            max_num_examples=max_num_examples,
            max_update_norm=max_update_norm,
            update_precision=UpdatePrecision.Value(f"UPDATE_PRECISION_{update_precision}"),
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
        """Starts the first round.

        Raises:
            NoParticipants: Nobody is registered.
            TrainingNotInitial: It was started before.
        """
        request = training_pb2.StartTrainingRequest(training_id=training_id, request_id=str(uuid.uuid4()))
        return self._rpc.unary(self._rpc.trainings.StartTraining, request).training

    def get_training(self, training_id: str) -> Training:
        """Answers a training that you created or take part in.

        Raises:
            TrainingNotFound: You have no such training.
        """
        request = training_pb2.GetTrainingRequest(training_id=training_id)
        return self._rpc.unary(self._rpc.trainings.GetTraining, request).training

    def trainings(self, role: TrainingRoleName = "ACTOR") -> Iterator[Training]:
        """Iterates over your trainings, the newest first, fetching page after page.

        Args:
            role: "ACTOR" for those that you created, "CLIENT" for those that you take part in.
        """
        request = training_pb2.GetTrainingsRequest(role=training_pb2.TrainingRole.Value(f"TRAINING_ROLE_{role}"))
        for page in self._rpc.pages(self._rpc.trainings.GetTrainings, request):
            yield from page.trainings

    def register_clients(self, training_id: str, client_ids: Iterable[str]) -> Training:
        """Registers users as participants; in a running training they join when a round is opened, or repeated.

        Raises:
            UnknownClients: Some ids are no users; nothing was changed.
            TrainingEnded: The training is over.
        """
        request = training_pb2.RegisterClientsRequest(training_id=training_id, client_ids=client_ids)
        return self._rpc.unary(self._rpc.trainings.RegisterClients, request).training

    def remove_clients(self, training_id: str, client_ids: Iterable[str]) -> Training:
        """Removes participants; their updates of the open round do not count. Participants may remove themselves.

        Raises:
            UnknownClients: Some ids are no participants; nothing was changed.
            LastParticipant: A running training keeps at least one.
            TrainingEnded: The training is over.
        """
        request = training_pb2.RemoveClientsRequest(training_id=training_id, client_ids=client_ids)
        return self._rpc.unary(self._rpc.trainings.RemoveClients, request).training

    def remove_training(self, training_id: str, *, force: bool = False) -> None:
        """Removes a training; its model and the versions so far stay.

        Raises:
            TrainingRunning: It runs, and force is not given.
        """
        request = training_pb2.RemoveTrainingRequest(training_id=training_id, force=force)
        self._rpc.unary(self._rpc.trainings.RemoveTraining, request)

    def watch(
        self, training_id: str | None = None, *, resume_after: int | Mapping[str, int] | None = None
    ) -> Iterator[Event]:
        """Iterates over what happens, across lost connections and server restarts, each event once and in order.

        Args:
            training_id: UUID of the training; iteration ends after its last event. None for all of yours, without end.
            resume_after: The last sequence that you know (for all trainings: by training id); None starts at the
                current round, or before the start at the beginning.

        Raises:
            TrainingNotFound: You have no such training.
            CursorExpired: The log does not reach the sequence.
        """
        cursors = {training_id or "": resume_after} if isinstance(resume_after, int) else resume_after
        return iter(Subscription(self._rpc, training_id or "", resume_after=cursors))

    def wait(self, training_id: str, timeout: float | None = None) -> Training:
        """Returns a training once it is completed.

        Args:
            training_id: UUID of the training.
            timeout: Seconds; None for any time.

        Raises:
            TimeoutError: It has not ended in time.
            TrainingFailed: It ended in ERROR.
            TrainingRemoved: It was removed.
        """
        subscription = Subscription(self._rpc, training_id, timeout=timeout)
        for event in subscription:
            error = from_event(event)
            if error is not None:
                raise self._explained(error)
        return self._rpc.retrying(None, nap=subscription.nap)(self.get_training, training_id)

    def _explained(self, error: FedroundError) -> FedroundError:
        """Adds what only the training itself tells, and only to its actor: who was missing."""
        if isinstance(error, TrainingFailed):
            with suppress(FedroundError):
                found = self.get_training(error.metadata["training_id"]).error
                if found.reason:
                    return TrainingFailed(error.code, found.reason, found.message, error.metadata)
        return error


def _policy(min_updates: int, deadline: float | None, max_retries: int) -> RoundPolicy:
    on_missed = training_pb2.ON_MISSED_RETRY if max_retries else training_pb2.ON_MISSED_UNSPECIFIED
    return RoundPolicy(
        min_updates=min_updates, deadline=duration(deadline), on_missed=on_missed, max_retries=max_retries
    )
