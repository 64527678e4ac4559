"""ControlService."""

from fedround.v1 import control_pb2, control_pb2_grpc
from fedround_server.coordinator import Coordinator
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.training import Stop
from fedround_server.interceptors.auth import caller
from fedround_server.interceptors.wrapping import Call
from fedround_server.services import config, convert, fields


class ControlService(control_pb2_grpc.ControlServiceServicer):
    """Stops, pauses and changes running trainings."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._control = coordinator.control

    async def StopTraining(
        self, request: control_pb2.StopTrainingRequest, context: Call
    ) -> control_pb2.StopTrainingResponse:
        """Ends a training before its target."""
        training = await self._control.stop(
            fields.parse_id("training_id", request.training_id),
            caller().user_id,
            _when(request.when),
            fields.parse_optional_id("request_id", request.request_id),
        )
        return control_pb2.StopTrainingResponse(training=convert.training(training, caller().user_id))

    async def PauseTraining(
        self, request: control_pb2.PauseTrainingRequest, context: Call
    ) -> control_pb2.PauseTrainingResponse:
        """Has no further round opened."""
        training = await self._control.pause(
            fields.parse_id("training_id", request.training_id),
            caller().user_id,
            fields.parse_optional_id("request_id", request.request_id),
        )
        return control_pb2.PauseTrainingResponse(training=convert.training(training, caller().user_id))

    async def ResumeTraining(
        self, request: control_pb2.ResumeTrainingRequest, context: Call
    ) -> control_pb2.ResumeTrainingResponse:
        """Ends a pause."""
        training = await self._control.resume(
            fields.parse_id("training_id", request.training_id),
            caller().user_id,
            fields.parse_optional_id("request_id", request.request_id),
        )
        return control_pb2.ResumeTrainingResponse(training=convert.training(training, caller().user_id))

    async def UpdateConfig(
        self, request: control_pb2.UpdateConfigRequest, context: Call
    ) -> control_pb2.UpdateConfigResponse:
        """Changes the configuration from the next round on."""
        if not request.config and not request.client_config:
            raise FieldInvalid("config", "is empty, and so is client_config: name at least one value to change")
        training = await self._control.update_config(
            fields.parse_id("training_id", request.training_id),
            caller().user_id,
            config.read_changes("config", request.config),
            config.read_client_changes("client_config", request.client_config),
            fields.parse_optional_id("request_id", request.request_id),
        )
        return control_pb2.UpdateConfigResponse(training=convert.training(training, caller().user_id))


def _when(value: control_pb2.Stop.ValueType) -> Stop:
    if value not in control_pb2.Stop.values():
        raise FieldInvalid("when", f"is {value}; known are {', '.join(control_pb2.Stop.keys())}")
    return Stop.NOW if value == control_pb2.STOP_NOW else Stop.AFTER_ROUND
