"""ModelService."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from fedround.v1 import model_pb2, model_pb2_grpc
from fedround_server.coordinator import Coordinator
from fedround_server.interceptors.around import Call
from fedround_server.interceptors.auth import caller
from fedround_server.services import convert, fields
from fedround_server.services.chunks import ChunkStream, incoming


class ModelService(model_pb2_grpc.ModelServiceServicer):
    """Stores models."""

    def __init__(self, coordinator: Coordinator) -> None:
        """Serves these use cases."""
        self._models = coordinator.models

    async def UploadModel(
        self,
        request_iterator: AsyncIterator[model_pb2.UploadModelRequest],
        context: Call,
    ) -> model_pb2.UploadModelResponse:
        """Stores a model file as version 0 of a new model."""
        stream = ChunkStream(request_iterator)
        spec = (await stream.first()).spec
        name = fields.a_text("spec.name", spec.name, 200)
        description = fields.a_text("spec.description", spec.description, 10_000)
        file = incoming(stream, "spec.", spec.sha256, spec.size_bytes, spec.upload_id, spec.offset)
        model = await self._models.upload(name, description, file)
        return model_pb2.UploadModelResponse(model=convert.model(model, tensors=True))

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Call) -> model_pb2.GetModelResponse:
        """Answers one model."""
        model = await self._models.get(fields.an_id("model_id", request.model_id), caller().user_id)
        return model_pb2.GetModelResponse(model=convert.model(model, tensors=True))

    async def GetModels(self, request: model_pb2.GetModelsRequest, context: Call) -> model_pb2.GetModelsResponse:
        """Lists the caller's models."""
        size = fields.a_page_size(request.page_size)
        models = await self._models.page(caller().user_id, fields.a_position(request.page_token), size + 1)
        last = models[size - 1] if len(models) > size else None
        return model_pb2.GetModelsResponse(
            models=[convert.model(model, tensors=False) for model in models[:size]],
            next_page_token=fields.position(last.create_time, last.model_id) if last else "",
        )

    async def DownloadModel(  # type: ignore[override]  # a coroutine that writes has no generator lifetime to reason about
        self,
        request: model_pb2.DownloadModelRequest,
        context: Call,
    ) -> None:
        """Streams a version's file."""
        version = await self._models.get_version(
            fields.an_id("model_id", request.model_id),
            request.version if request.HasField("version") else None,
            caller().user_id,
        )
        self._models.check_offset(version, request.offset)
        await context.write(model_pb2.DownloadModelResponse(info=convert.model_info(version)))
        async with aclosing(self._models.read(version, request.offset)) as chunks:
            async for chunk in chunks:
                await context.write(model_pb2.DownloadModelResponse(chunk=chunk))

    async def RemoveModel(self, request: model_pb2.RemoveModelRequest, context: Call) -> model_pb2.RemoveModelResponse:
        """Removes a model."""
        await self._models.remove(fields.an_id("model_id", request.model_id), caller().user_id)
        return model_pb2.RemoveModelResponse()

    async def GetMetrics(self, request: model_pb2.GetMetricsRequest, context: Call) -> model_pb2.GetMetricsResponse:
        """Lists the metrics reported on a model."""
        size = fields.a_page_size(request.page_size)
        position = fields.a_page_token(request.page_token, int)
        skip = position[0] if position else 0
        reports = await self._models.metrics(
            fields.an_id("model_id", request.model_id), caller().user_id, skip, size + 1
        )
        return model_pb2.GetMetricsResponse(
            reports=[convert.metric_report(report) for report in reports[:size]],
            next_page_token=fields.page_token(skip + size) if len(reports) > size else "",
        )
