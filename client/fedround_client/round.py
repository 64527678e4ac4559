"""The calls of RoundService: results of participants, and the state of a round."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fedround.v1.round_pb2 import (
    ROUND_VIEW_FULL,
    ROUND_VIEW_SUMMARY,
    DownloadAssignedModelRequest,
    DownloadControlRequest,
    GetRoundRequest,
    GetRoundsRequest,
    ReportFailureRequest,
    Round,
    RoundParticipant,
    SubmitMetricsRequest,
    SubmitUpdateRequest,
    UpdateReceipt,
    UpdateSpec,
)
from fedround_client.download import download
from fedround_client.errors import NotInCohort, RoundNotOpen, UpdateExists, UpdateSuperseded
from fedround_client.metrics import MetricValue, split_metrics
from fedround_client.payload import ModelSource, Payload, Progress
from fedround_client.retry import ATTEMPTS
from fedround_client.rpc import PAGE_SIZE, Rpc
from fedround_client.safetensors_reader import SafetensorsReader
from fedround_client.tensor_types import Framework
from fedround_client.upload import upload


class RoundCalls:
    """Single calls of RoundService; `Client.participate` makes them for you."""

    _rpc: Rpc

    def get_round(self, training_id: str, number: int | None = None, *, summary: bool = False) -> Round:
        """Returns the state of a round: which participants are missing, and which rule keeps it open.

        Of its participants it has the first 1000 at most, failed and missing ones first; `round_participants` iterates
        over all. Participants of a round that is done have a `report`: what the aggregation found out about their
        update.

        Args:
            training_id: UUID of a training of yours; for a viewer, of any training.
            number: Number of the round, from 0; None for the current one.
            summary: Whether to leave out what is known of single participants, and the forecast. That is cheap, however
                many there are.

        Raises:
            TrainingNotFound: You have no such training.
            NotActor: You are a participant of the training, not its actor.
        """
        view = ROUND_VIEW_SUMMARY if summary else ROUND_VIEW_FULL
        request = GetRoundRequest(training_id=training_id, round=number, view=view)
        return self._rpc.unary(self._rpc.rounds.GetRound, request).round

    def round_participants(self, training_id: str, number: int | None = None) -> Iterator[RoundParticipant]:
        """Iterates over the participants of a round; fetches them page by page.

        Those that failed come first, then others with a missing update or report, then the rest; each group by name.
        A participant that submits or fails meanwhile keeps its place. It may be there twice if its failure is withdrawn
        meanwhile, and not at all if its update is lost (the event `update_lost`).

        Args:
            training_id: UUID of a training of yours; for a viewer, of any training.
            number: Number of the round, from 0; None for the one that is current at the first page.

        Raises:
            TrainingNotFound: You have no such training.
            NotActor: You are a participant of the training, not its actor.
        """
        request = GetRoundRequest(training_id=training_id, round=number, page_size=PAGE_SIZE)
        while True:
            page = self._rpc.unary(self._rpc.rounds.GetRound, request)
            yield from page.round.participants
            if not page.next_page_token:
                return
            request.round, request.page_token = page.round.number, page.next_page_token

    def rounds(self, training_id: str) -> Iterator[Round]:
        """Iterates over the rounds of a training, the latest first, as summaries; fetches them page by page.

        Args:
            training_id: UUID of a training of yours; for a viewer, of any training.

        Raises:
            TrainingNotFound: You have no such training.
            NotActor: You are a participant of the training, not its actor.
        """
        for page in self._rpc.pages(self._rpc.rounds.GetRounds, GetRoundsRequest(training_id=training_id)):
            yield from page.rounds

    def download_assigned_model(
        self,
        training_id: str,
        number: int,
        *,
        framework: Framework | None = "numpy",
        attempts: int | None = ATTEMPTS,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Downloads the local model that was assigned to you in a round of daisy chaining; no other user can read it.

        Args:
            training_id: UUID of the training.
            number: Number of the round.
            framework: "numpy" for arrays, "torch" for tensors; None for tensors if its participant has sent tensors and
                this program has imported torch, else arrays.
            attempts: How many attempts in a row may fail without progress; None for any number.
            progress: Called with the bytes received and the bytes in all.

        Returns:
            np.ndarray or torch.Tensor by name.

        Raises:
            NotInCohort: No model is assigned to you in this round.
            TrainingNotFound: You are not a participant of such a training.
        """
        reader = SafetensorsReader(framework)
        download(
            self._rpc,
            self._rpc.rounds.DownloadAssignedModel,
            lambda offset, _: DownloadAssignedModelRequest(
                training_id=training_id, round=number, offset=offset, compression=self._rpc.compression
            ),
            reader,
            attempts=attempts,
            progress=progress,
        )
        return reader.tensors()

    def download_control(
        self,
        training_id: str,
        number: int,
        *,
        framework: Framework | None = "numpy",
        attempts: int | None = ATTEMPTS,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Downloads the control variate that the server has in a round of SCAFFOLD.

        Args:
            training_id: UUID of the training.
            number: Number of the round.
            framework: "numpy" for arrays, "torch" for tensors.
            attempts: How many attempts in a row may fail without progress; None for any number.
            progress: Called with the bytes received and the bytes in all.

        Returns:
            np.ndarray or torch.Tensor by name: one for each trained floating tensor of the model that is no buffer. In
            the first round there is none: an empty dict, which stands for zeros.

        Raises:
            NotInCohort: You do not belong to the round.
            FieldInvalid: The rule of the training has no control variates.
            TrainingNotFound: You are not a participant of such a training.
        """
        reader = SafetensorsReader(framework)
        info = download(
            self._rpc,
            self._rpc.rounds.DownloadControl,
            lambda offset, _: DownloadControlRequest(
                training_id=training_id, round=number, offset=offset, compression=self._rpc.compression
            ),
            reader,
            attempts=attempts,
            progress=progress,
        )
        return reader.tensors() if info.size_bytes else {}

    def submit_update(
        self,
        training_id: str,
        number: int,
        model: ModelSource,
        num_examples: int,
        metrics: Mapping[str, MetricValue] | None = None,
        *,
        local_steps: int | None = None,
        initial_loss: float | None = None,
        base_version: int | None = None,
        num_updates: int = 0,
        attempts: int | None = ATTEMPTS,
        progress: Progress | None = None,
    ) -> UpdateReceipt:
        """Submits an update to an open round; resumes the upload after a lost connection.

        Args:
            training_id: UUID of the training.
            number: Number of the round, from 0.
            model: State dict with names, shapes and dtypes as in the round's model, or the path of such a file;
                strip_prefix removes what wrappers of networks put before the names.
            num_examples: Number of examples it was trained on, which is its weight; from 0 to the training's
                max_num_examples, or to 2^31.
            metrics: Up to 1000 metrics to store with the update, by name: numbers, which the server averages without
                NaN and infinity, and texts and lists of numbers, which it keeps for the actor.
            local_steps: How many steps of the local optimizer made it, 1 to 2^53; required with FedNova.
            initial_loss: The loss of the round's model on your data, before training, finite and at least 0; required
                with QFedAvg.
            base_version: In an asynchronous training (FedBuff, FedAsync), the version of the model that it was trained
                from; None for the one that the round started from.
            num_updates: If the file is a partial sum, as a relay sends it, how many updates it is the sum of.
            attempts: How many attempts in a row may fail without progress; None for any number.
            progress: Called with the bytes sent and the bytes in all.

        Returns:
            The receipt: the server's promise that the update is stored, and counted once. Its `round` is the one in
            which the update counts: in an asynchronous training the one that is open when it is accepted.

        Raises:
            TypeError, ValueError: A metric is not valid; the message names it.
            TensorError: The model is none; the message says what one is.
            RoundNotOpen: The round is over.
            UpdateExists: You submitted another update to the round before, or the same file with another number of
                examples or other metrics.
            UpdateSuperseded: You submitted this update before, and it will not count.
            TensorsMismatch, UpdateMismatch, UpdateNotFinite, UpdateNorm, NumExamples: The update is not valid.
            FieldInvalid: The rule of the aggregation needs local_steps or initial_loss, or base_version is wrong.
            UpdateStale: In an asynchronous training, too many versions were made since base_version.
            FedroundError: The server answered with another error.
        """
        return self._submit_payload(
            training_id,
            number,
            Payload.of(model),
            num_examples,
            metrics,
            local_steps=local_steps,
            initial_loss=initial_loss,
            base_version=base_version,
            num_updates=num_updates,
            attempts=attempts,
            progress=progress,
        )

    def _submit_payload(
        self,
        training_id: str,
        number: int,
        payload: Payload,
        num_examples: int,
        metrics: Mapping[str, MetricValue] | None,
        *,
        local_steps: int | None = None,
        initial_loss: float | None = None,
        base_version: int | None = None,
        attempts: int | None,
        progress: Progress | None = None,
        prepare: Callable[[UpdateSpec], None] | None = None,
        num_updates: int = 0,
    ) -> UpdateReceipt:
        """Submits an update; `prepare` is called with its description before anything is sent."""
        upload_id, split = str(uuid.uuid4()), split_metrics(metrics)

        # Made here: gRPC would log an exception of its iterator with a traceback.
        spec = UpdateSpec(
            training_id=training_id,
            round=number,
            num_examples=num_examples,
            metrics=split.metrics,
            text_metrics=split.text_metrics,
            list_metrics=split.list_metrics,
            sha256=payload.sha256,
            size_bytes=payload.size_bytes,
            upload_id=upload_id,
            local_steps=local_steps or 0,
            initial_loss=initial_loss,
            base_version=base_version,
            num_updates=num_updates,
        )

        if prepare is not None:
            prepare(spec)

        def first(offset: int) -> SubmitUpdateRequest:
            spec.offset = offset
            return SubmitUpdateRequest(spec=spec)

        return upload(
            self._rpc,
            self._rpc.rounds.SubmitUpdate,
            payload,
            upload_id,
            first,
            SubmitUpdateRequest,
            whole=self._rpc.submit_whole,
            attempts=attempts,
            progress=progress,
        ).receipt

    def _was_accepted(self, spec: UpdateSpec) -> bool:
        """Returns whether an update of a round that is over was accepted, and may count: it then has a receipt."""
        spec.upload_id, spec.offset = "", 0
        try:
            upload(
                self._rpc,
                self._rpc.rounds.SubmitUpdate,
                Payload.empty(),
                "",
                lambda _: SubmitUpdateRequest(spec=spec),
                SubmitUpdateRequest,
                whole=self._rpc.submit_whole,
                attempts=None,
            )
        except (RoundNotOpen, NotInCohort, UpdateExists, UpdateSuperseded):
            return False
        return True

    def submit_metrics(
        self, training_id: str, number: int, metrics: Mapping[str, MetricValue], num_examples: int
    ) -> None:
        """Submits the metrics of an evaluation round.

        Args:
            training_id: UUID of the training.
            number: Number of the evaluation round.
            metrics: Up to 1000 metrics by name, as in submit_update; at least the training's metric_names, as numbers.
            num_examples: Number of examples that were evaluated, from 0 to 2^31.

        Raises:
            TypeError, ValueError: A metric is not valid; the message names it.
            RoundNotOpen: The round is over.
            MetricsExist: You submitted another report to the round before.
            UpdateSuperseded: You submitted this report before, and it will not count.
            FedroundError: The server answered with another error.
        """
        split = split_metrics(metrics)
        request = SubmitMetricsRequest(
            training_id=training_id,
            round=number,
            metrics=split.metrics,
            text_metrics=split.text_metrics,
            list_metrics=split.list_metrics,
            num_examples=num_examples,
        )
        self._rpc.unary(self._rpc.rounds.SubmitMetrics, request)

    def report_failure(self, training_id: str, number: int, reason: str, message: str = "") -> None:
        """Reports that you cannot deliver in an open round, so that it does not wait for you.

        Only your first report in a round counts. If you submit nevertheless while the round is open, the submission
        counts, and the failure is withdrawn.

        Args:
            training_id: UUID of the training.
            number: Number of the round.
            reason: A reason for programs, such as "OUT_OF_MEMORY": 1 to 64 letters, digits and underscores.
            message: A message for the actor; the server stores 1000 characters.

        Raises:
            RoundNotOpen: The round is over.
            NotInCohort: You do not belong to the round.
            UpdateExists, MetricsExist: You have submitted in the round, and that counts.
        """
        request = ReportFailureRequest(training_id=training_id, round=number, reason=reason, message=message)
        self._rpc.unary(self._rpc.rounds.ReportFailure, request)
