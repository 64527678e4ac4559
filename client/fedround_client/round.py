"""Rounds: what participants submit, and why a round is waiting."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from fedround.v1.round_pb2 import (
    DownloadDealtModelRequest,
    GetRoundRequest,
    Round,
    SubmitMetricsRequest,
    SubmitUpdateRequest,
    UpdateReceipt,
    UpdateSpec,
)
from fedround_client.rpc import ATTEMPTS, Rpc
from fedround_client.tensors import Framework, SafetensorsReader
from fedround_client.transfer import ModelSource, Payload, Progress, download, upload


class RoundCalls:
    """The calls of RoundService that stand on their own; `Client.participate` makes them for you."""

    _rpc: Rpc

    def get_round(self, training_id: str, number: int | None = None) -> Round:
        """Answers who and what a round is waiting for.

        Args:
            training_id: UUID of a training of yours.
            number: Number of the round, from 0; None for the current one.

        Raises:
            TrainingNotFound: You have no such training.
            NotActor: You take part in it, but did not create it.
        """
        request = GetRoundRequest(training_id=training_id, round=number)
        return self._rpc.unary(self._rpc.rounds.GetRound, request).round

    def download_dealt_model(
        self,
        training_id: str,
        number: int,
        *,
        framework: Framework = "numpy",
        attempts: int | None = ATTEMPTS,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Fetches the local model that you were dealt in a round of daisy chaining; nobody else can read it.

        Args:
            training_id: UUID of the training.
            number: Number of the round.
            framework: "numpy" for arrays, "torch" for tensors.
            attempts: How many in a row may fail without progress; None for any number.
            progress: Told how many bytes of how many have arrived.

        Returns:
            np.ndarray or torch.Tensor by name.

        Raises:
            NotInCohort: You were dealt nothing in this round.
            TrainingNotFound: You take no part in such a training.
        """
        arrival = SafetensorsReader(framework)
        download(
            self._rpc,
            self._rpc.rounds.DownloadDealtModel,
            lambda offset, _: DownloadDealtModelRequest(
                training_id=training_id, round=number, offset=offset, packing=self._rpc.packing
            ),
            arrival,
            attempts=attempts,
            progress=progress,
        )
        return arrival.tensors()

    def submit_update(
        self,
        training_id: str,
        number: int,
        model: ModelSource,
        num_examples: int,
        metrics: Mapping[str, float] | None = None,
        *,
        attempts: int | None = ATTEMPTS,
        progress: Progress | None = None,
    ) -> UpdateReceipt:
        """Submits an update of an open round; a cut upload goes on where it was.

        Args:
            training_id: UUID of the training.
            number: Number of the round, from 0.
            model: State dict with names, shapes and dtypes as in the round's model, or the path of such a file.
            num_examples: Examples it was trained on, its weight; 1 to 2^31 or the training's max_num_examples.
            metrics: Finite numbers to keep with the update.
            attempts: How many in a row may fail without progress; None for any number.
            progress: Told how many bytes of how many are sent.

        Returns:
            The server's promise to count the update.

        Raises:
            RoundNotOpen: The round is over.
            UpdateExists: You gave another update to it before.
            UpdateMismatch, UpdateNotFinite, NumExamples: The update is refused.
            FedroundError: Anything else that the server refused.
        """
        return self._submit_payload(
            training_id, number, Payload.of(model), num_examples, metrics, attempts=attempts, progress=progress
        )

    def _submit_payload(
        self,
        training_id: str,
        number: int,
        payload: Payload,
        num_examples: int,
        metrics: Mapping[str, float] | None,
        *,
        attempts: int | None,
        progress: Progress | None = None,
    ) -> UpdateReceipt:
        upload_id = str(uuid.uuid4())

        def first(offset: int) -> SubmitUpdateRequest:
            spec = UpdateSpec(
                training_id=training_id,
                round=number,
                num_examples=num_examples,
                metrics=metrics,
                sha256=payload.sha256,
                size_bytes=payload.size_bytes,
                upload_id=upload_id,
                offset=offset,
            )
            return SubmitUpdateRequest(spec=spec)

        return upload(
            self._rpc,
            self._rpc.rounds.SubmitUpdate,
            payload,
            upload_id,
            first,
            SubmitUpdateRequest,
            attempts=attempts,
            progress=progress,
        ).receipt

    def submit_metrics(self, training_id: str, number: int, metrics: Mapping[str, float], num_examples: int) -> None:
        """Submits the results of an evaluation round.

        Args:
            training_id: UUID of the training.
            number: Number of the evaluation round.
            metrics: Finite numbers by name; at least the training's metric_names.
            num_examples: Examples behind them, 1 to 2^31.

        Raises:
            RoundNotOpen: The round is over.
            FedroundError: Anything else that the server refused.
        """
        request = SubmitMetricsRequest(
            training_id=training_id, round=number, metrics=metrics, num_examples=num_examples
        )
        self._rpc.unary(self._rpc.rounds.SubmitMetrics, request)
