"""ModelService."""

from collections.abc import AsyncIterator

from fedround.v1 import event_pb2, model_pb2, model_pb2_grpc
from fedround_server.coordinator import Coordinator
from fedround_server.coordinator.served_files import ModelPart
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.model import BEST, LAST
from fedround_server.interceptors.auth import caller
from fedround_server.interceptors.wrapping import Call
from fedround_server.services import convert, fields, pages
from fedround_server.services.chunks import ChunkStream, check_offset, incoming, send_file
from fedround_server.services.compression import Compressor, parse_compression
from fedround_server.services.tensor_selection import parse_globs


class ModelService(model_pb2_grpc.ModelServiceServicer):
    """Stores and returns models."""

    def __init__(self, coordinator: Coordinator, compressor: Compressor) -> None:
        self._models = coordinator.models
        self._reads = coordinator.reads
        self._compressor = compressor

    async def UploadModel(
        self,
        request_iterator: AsyncIterator[model_pb2.UploadModelRequest],
        context: Call,
    ) -> model_pb2.UploadModelResponse:
        """Stores a model file as version 0 of a new model."""
        stream = ChunkStream(request_iterator)
        spec = (await stream.first()).spec
        name = fields.parse_text("spec.name", spec.name, 200)
        description = fields.parse_text("spec.description", spec.description, 10_000)
        architecture = fields.parse_architecture("spec.architecture", spec.architecture)
        file = incoming(stream, "spec.", spec.sha256, spec.size_bytes, spec.upload_id, spec.offset)
        model = await self._models.upload(
            name, description, architecture, file, allow_non_finite=spec.allow_non_finite_buffers
        )
        return model_pb2.UploadModelResponse(model=convert.model(model))

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Call) -> model_pb2.GetModelResponse:
        """Returns a model."""
        model_id = fields.parse_id("model_id", request.model_id)
        model = await self._reads.model(model_id, await self._reads.reader_of_model(caller(), model_id))
        return model_pb2.GetModelResponse(model=convert.model(model))

    async def GetModels(self, request: model_pb2.GetModelsRequest, context: Call) -> model_pb2.GetModelsResponse:
        """Lists the caller's models."""
        size = pages.parse_size(request.page_size)
        models = await self._reads.models(caller().user_id, pages.parse_position(request.page_token), size + 1)
        page, token = pages.cut(
            models, size, convert.model, lambda model: pages.format_position(model.create_time, model.model_id)
        )
        return model_pb2.GetModelsResponse(models=page, next_page_token=token)

    async def GetModelVersions(
        self, request: model_pb2.GetModelVersionsRequest, context: Call
    ) -> model_pb2.GetModelVersionsResponse:
        """Lists the versions of a model."""
        size = pages.parse_size(request.page_size)
        position = pages.parse_token(request.page_token, int)
        model_id = fields.parse_id("model_id", request.model_id)
        reader_id = await self._reads.reader_of_model(caller(), model_id)
        before = position[0] if position else None
        versions = await self._reads.model_versions(model_id, reader_id, before, size + 1)
        page, token = pages.cut(
            versions, size, convert.model_version, lambda view: pages.format_token(view.version.version)
        )
        return model_pb2.GetModelVersionsResponse(versions=page, next_page_token=token)

    async def TagModelVersion(
        self, request: model_pb2.TagModelVersionRequest, context: Call
    ) -> model_pb2.TagModelVersionResponse:
        """Adds a tag to a version, or removes it."""
        tag = fields.parse_tag("tag", request.tag)
        if tag in (LAST, BEST):
            raise FieldInvalid("tag", f"{tag!r} is set by the server: choose another one")
        version = await self._models.tag(
            fields.parse_id("model_id", request.model_id), request.version, tag, caller().user_id, remove=request.remove
        )
        return model_pb2.TagModelVersionResponse(version=convert.model_version(version))

    async def DownloadModel(  # type: ignore[override]  # a coroutine that writes has no generator lifetime to reason about
        self,
        request: model_pb2.DownloadModelRequest,
        context: Call,
    ) -> None:
        """Streams a version's file."""
        number, tag = fields.parse_version(request.version if request.HasField("version") else None, request.tag)
        part = _part(request)
        globs = parse_globs("tensors", request.tensors)
        compressor = self._compressor if parse_compression(request.compression) else None
        model_id = fields.parse_id("model_id", request.model_id)
        have = fields.parse_digest("have_sha256", request.have_sha256)
        file = await self._models.find_file(model_id, number, caller().user_id, tag, part, globs)
        check_offset(file.size_bytes, request.offset)
        info = event_pb2.ModelInfo(
            model_id=model_id, version=file.version, sha256=file.sha256, size_bytes=file.size_bytes
        )
        if have == file.sha256:
            await context.write(model_pb2.DownloadModelResponse(info=info, unchanged=True))
            return
        chunks = self._models.read(file, request.offset)
        await send_file(context, model_pb2.DownloadModelResponse, info, chunks, compressor)

    async def RemoveModel(self, request: model_pb2.RemoveModelRequest, context: Call) -> model_pb2.RemoveModelResponse:
        """Removes a model."""
        await self._models.remove(fields.parse_id("model_id", request.model_id), caller().user_id)
        return model_pb2.RemoveModelResponse()

    async def GetMetrics(self, request: model_pb2.GetMetricsRequest, context: Call) -> model_pb2.GetMetricsResponse:
        """Lists the metrics reported on a model."""
        size = pages.parse_size(request.page_size)
        model_id, after = fields.parse_id("model_id", request.model_id), _after(request.page_token)
        reader_id = await self._reads.reader_of_model(caller(), model_id)
        reports = await self._reads.metrics(model_id, reader_id, after, size + 1)
        page, token = pages.cut(
            reports, size, convert.metric_report, lambda one: pages.format_token(one.round, one.reporter_id or "")
        )
        return model_pb2.GetMetricsResponse(reports=page, next_page_token=token)


def _after(token: str) -> tuple[int, str]:
    """Decodes a page token: round and reporter of the last report of the page before."""
    found = pages.parse_token(token, int, str)
    return (-1, "") if found is None else (found[0], fields.parse_optional_id("page_token", found[1]) or "")


def _part(request: model_pb2.DownloadModelRequest) -> ModelPart:
    if request.part not in model_pb2.ModelPart.values():
        raise FieldInvalid("part", f"is {request.part}; known are {', '.join(model_pb2.ModelPart.keys())}")
    part = ModelPart(model_pb2.ModelPart.Name(request.part or model_pb2.MODEL_PART_MODEL).removeprefix("MODEL_PART_"))
    if request.tensors and part is not ModelPart.MODEL:
        raise FieldInvalid("tensors", "goes with MODEL_PART_MODEL only: leave one of them out")
    return part
