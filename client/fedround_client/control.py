"""The calls of ControlService: what an actor does with a training while it runs."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from fedround.v1.control_pb2 import (
    STOP_AFTER_ROUND,
    STOP_NOW,
    PauseTrainingRequest,
    ResumeTrainingRequest,
    StopTrainingRequest,
    UpdateConfigRequest,
)
from fedround.v1.training_pb2 import Training
from fedround_client import config as messages
from fedround_client.config import ConfigOption
from fedround_client.rpc import Rpc


class ControlCalls:
    """The calls of ControlService. For the actor of a training. Each returns the training after the change."""

    _rpc: Rpc

    def stop_training(self, training_id: str, *, now: bool = False, request_id: str | None = None) -> Training:
        """Ends a training before its target: it becomes COMPLETED with the versions that it has.

        Args:
            training_id: UUID of the training.
            now: Abandon an open round, and do not count its updates. By default, the training ends when the result of
                the open round is committed; without an open round, it ends at once. A round that is being aggregated
                is committed in either case.
            request_id: UUID of the request: a repeated one changes nothing more. Random by default.

        Raises:
            TrainingNotRunning: It was not started, or has ended.
        """
        when = STOP_NOW if now else STOP_AFTER_ROUND
        request = StopTrainingRequest(training_id=training_id, when=when, request_id=_request_id(request_id))
        return self._rpc.unary(self._rpc.control.StopTraining, request).training

    def pause_training(self, training_id: str, *, request_id: str | None = None) -> Training:
        """Has no further round opened until the training is resumed; an open round continues, with its deadline.

        Args:
            training_id: UUID of the training.
            request_id: As in `stop_training`.

        Raises:
            TrainingPaused: It is paused already.
            TrainingNotRunning: It was not started, or has ended.
        """
        request = PauseTrainingRequest(training_id=training_id, request_id=_request_id(request_id))
        return self._rpc.unary(self._rpc.control.PauseTraining, request).training

    def resume_training(self, training_id: str, *, request_id: str | None = None) -> Training:
        """Ends a pause: the next round opens at once, unless one is open.

        Args:
            training_id: UUID of the training.
            request_id: As in `stop_training`.

        Raises:
            TrainingNotPaused: It is not paused.
            TrainingNotRunning: It was not started, or has ended.
        """
        request = ResumeTrainingRequest(training_id=training_id, request_id=_request_id(request_id))
        return self._rpc.unary(self._rpc.control.ResumeTraining, request).training

    def update_config(
        self,
        training_id: str,
        config: Mapping[str, ConfigOption | None] | None = None,
        *,
        client_config: Mapping[str, Mapping[str, ConfigOption | None]] | None = None,
        request_id: str | None = None,
    ) -> Training:
        """Changes the configuration from the next round on; before the start, from the first round on.

        Args:
            training_id: UUID of the training.
            config: New values by name, as in `create_training`; None removes a value, and other values stay.
            client_config: New values of single participants, by their user ids, likewise.
            request_id: As in `stop_training`.

        Raises:
            UnknownClients: A client id is not the id of a participant; nothing was changed.
            TrainingNotRunning: The training has ended.
            FieldInvalid: A value is not valid; field_violations names it.
        """
        request = UpdateConfigRequest(
            training_id=training_id,
            config=messages.values(config or {}),
            client_config=messages.clients(client_config or {}),
            request_id=_request_id(request_id),
        )
        return self._rpc.unary(self._rpc.control.UpdateConfig, request).training


def _request_id(request_id: str | None) -> str:
    return request_id or str(uuid.uuid4())
