"""TrainingService."""

from collections.abc import AsyncIterator

import structlog

from fedround.v1 import training_pb2, training_pb2_grpc
from fedround_server.coordinator import Coordinator
from fedround_server.coordinator.uploads.receive import Incoming
from fedround_server.domain.errors import FieldInvalid, RoleRequired
from fedround_server.domain.user import User
from fedround_server.interceptors.auth import caller
from fedround_server.interceptors.wrapping import Call
from fedround_server.services import convert, fields, pages, training_spec
from fedround_server.services.chunks import ChunkStream, incoming


class TrainingService(training_pb2_grpc.TrainingServiceServicer):
    """Creates, starts, changes and removes trainings."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._trainings = coordinator.trainings
        self._reads = coordinator.reads
        self._privacy = coordinator.privacy

    async def CreateTraining(
        self,
        request_iterator: AsyncIterator[training_pb2.CreateTrainingRequest],
        context: Call,
    ) -> training_pb2.CreateTrainingResponse:
        """Creates a training from a streamed or a stored model."""
        stream = ChunkStream(request_iterator)
        first = await stream.first()
        spec = training_spec.read(first.spec)
        file: Incoming | None = None
        if spec.model_id is None:
            file = incoming(
                stream,
                "spec.model_",
                first.spec.model_sha256,
                first.spec.model_size_bytes,
                first.upload_id,
                first.offset,
            )
        else:
            async for _ in stream.chunks():
                raise FieldInvalid("spec.model_id", "selects a stored model, and a file is streamed: choose one")
        training = await self._trainings.create(caller().user_id, spec, file)
        # For the line of the log about this call: the request did not have it.
        structlog.contextvars.bind_contextvars(training_id=training.training_id)
        privacy = await self._privacy.spent(training)
        return training_pb2.CreateTrainingResponse(
            training=convert.training(training, caller().user_id, privacy=privacy)
        )

    async def GetTraining(
        self, request: training_pb2.GetTrainingRequest, context: Call
    ) -> training_pb2.GetTrainingResponse:
        """Returns a training."""
        training_id = fields.parse_id("training_id", request.training_id)
        reader_id = await self._reads.reader_of_training(caller(), training_id)
        training = await self._reads.training(training_id, reader_id)
        privacy = await self._privacy.spent(training)
        return training_pb2.GetTrainingResponse(training=convert.training(training, reader_id, privacy=privacy))

    async def GetTrainings(
        self, request: training_pb2.GetTrainingsRequest, context: Call
    ) -> training_pb2.GetTrainingsResponse:
        """Lists the caller's trainings, or for a viewer all."""
        user, role = caller(), _role(request.role, caller())
        size, before = pages.parse_size(request.page_size), pages.parse_position(request.page_token)
        if role == training_pb2.TRAINING_ROLE_VIEWER:
            trainings = await self._reads.all_trainings(before, size + 1)
        else:
            as_actor = role == training_pb2.TRAINING_ROLE_ACTOR
            trainings = await self._reads.trainings(user.user_id, as_actor=as_actor, before=before, limit=size + 1)
        page, token = pages.cut(
            trainings,
            size,
            lambda training: convert.training(training, user.reads_as(training.actor_id), listed=True),
            lambda training: pages.format_position(training.create_time, training.training_id),
        )
        return training_pb2.GetTrainingsResponse(trainings=page, next_page_token=token)

    async def RegisterClients(
        self, request: training_pb2.RegisterClientsRequest, context: Call
    ) -> training_pb2.RegisterClientsResponse:
        """Registers clients as participants."""
        training = await self._trainings.register(
            fields.parse_id("training_id", request.training_id),
            caller().user_id,
            fields.parse_ids("client_ids", request.client_ids),
        )
        return training_pb2.RegisterClientsResponse(training=convert.training(training, caller().user_id))

    async def RemoveClients(
        self, request: training_pb2.RemoveClientsRequest, context: Call
    ) -> training_pb2.RemoveClientsResponse:
        """Removes participants."""
        training = await self._trainings.remove_clients(
            fields.parse_id("training_id", request.training_id),
            caller().user_id,
            fields.parse_ids("client_ids", request.client_ids),
        )
        return training_pb2.RemoveClientsResponse(training=convert.training(training, caller().user_id))

    async def RemoveTraining(
        self, request: training_pb2.RemoveTrainingRequest, context: Call
    ) -> training_pb2.RemoveTrainingResponse:
        """Removes a training."""
        training_id = fields.parse_id("training_id", request.training_id)
        await self._trainings.remove(training_id, caller().user_id, force=request.force)
        return training_pb2.RemoveTrainingResponse()

    async def StartTraining(
        self, request: training_pb2.StartTrainingRequest, context: Call
    ) -> training_pb2.StartTrainingResponse:
        """Starts a training."""
        training = await self._trainings.start(
            fields.parse_id("training_id", request.training_id),
            caller().user_id,
            fields.parse_optional_id("request_id", request.request_id),
        )
        return training_pb2.StartTrainingResponse(training=convert.training(training, caller().user_id))


def _role(wanted: training_pb2.TrainingRole.ValueType, user: User) -> training_pb2.TrainingRole.ValueType:
    """Returns which trainings a user asks for.

    Raises:
        FieldInvalid: The role is unknown.
        RoleRequired: It asks for the trainings of all users, and is no viewer.
    """
    if wanted not in training_pb2.TrainingRole.values():
        raise FieldInvalid("role", f"is {wanted}; known are {', '.join(training_pb2.TrainingRole.keys()[1:])}")
    if wanted == training_pb2.TRAINING_ROLE_UNSPECIFIED:
        return training_pb2.TRAINING_ROLE_VIEWER if user.is_viewer else training_pb2.TRAINING_ROLE_ACTOR
    if wanted == training_pb2.TRAINING_ROLE_VIEWER and not user.is_viewer:
        raise RoleRequired(
            f"TRAINING_ROLE_VIEWER lists the trainings of all users, which requires the role VIEWER, and yours is"
            f" {user.role.value}: ask for TRAINING_ROLE_ACTOR or TRAINING_ROLE_CLIENT"
        )
    return wanted
