"""RoundService."""

from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import replace

from fedround.v1 import event_pb2, round_pb2, round_pb2_grpc
from fedround_server.coordinator import Coordinator
from fedround_server.coordinator.subscription import GoingAway, Heartbeat
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.event import Event, ModelInfo
from fedround_server.interceptors.auth import caller
from fedround_server.interceptors.wrapping import Call
from fedround_server.services import convert, fields, round_view
from fedround_server.services.chunks import ChunkStream, check_offset, incoming, send_file
from fedround_server.services.compression import Compressor, a_packing

RECENT = 64
"""How many encoded events are cached."""


class RoundService(round_pb2_grpc.RoundServiceServicer):
    """The RPCs of users that take part in rounds."""

    def __init__(self, coordinator: Coordinator, packer: Compressor) -> None:
        """Creates the service over the use cases."""
        self._packer = packer
        self._coordinator = coordinator
        self._submissions = coordinator.submissions
        self._encode = Encoder()

    async def Subscribe(  # type: ignore[override]  # a coroutine that writes has no generator lifetime to reason about
        self,
        request: round_pb2.SubscribeRequest,
        context: Call,
    ) -> None:
        """Streams events."""
        training_id = fields.an_optional_id("training_id", request.training_id)
        cursors = {
            fields.parse_id("resume_after_sequence", key): sequence
            for key, sequence in request.resume_after_sequence.items()
        }
        if any(sequence >= 1 << 62 for sequence in cursors.values()):
            raise FieldInvalid("resume_after_sequence", "has a sequence that no log reaches")
        line = _Line(context, self._encode)
        await self._coordinator.subscriptions.follow(caller().user_id, training_id, cursors, line.send, line.greet)

    async def SubmitUpdate(
        self,
        request_iterator: AsyncIterator[round_pb2.SubmitUpdateRequest],
        context: Call,
    ) -> round_pb2.SubmitUpdateResponse:
        """Accepts an update."""
        stream = ChunkStream(request_iterator)
        spec = (await stream.first()).spec
        training_id = fields.parse_id("spec.training_id", spec.training_id)
        async with self._coordinator.rejected_updates.counted(training_id, spec.round, caller().user_id):
            file = incoming(stream, "spec.", spec.sha256, spec.size_bytes, spec.upload_id, spec.offset)
            if file.sha256 is None:
                raise FieldInvalid("spec.sha256", "is required: the SHA-256 of the file, in hex")
            if file.size_bytes is None:
                raise FieldInvalid("spec.size_bytes", "is required: the size of the file in bytes")
            update = await self._submissions.submit(
                training_id,
                spec.round,
                fields.a_num_examples(spec.num_examples),
                fields.some_metrics(spec.metrics),
                replace(file, training_id=training_id, round=spec.round),
            )
        return round_pb2.SubmitUpdateResponse(receipt=convert.receipt(update))

    async def GetUpload(self, request: round_pb2.GetUploadRequest, context: Call) -> round_pb2.GetUploadResponse:
        """Returns how many bytes of an upload have arrived."""
        upload_id = fields.parse_id("upload_id", request.upload_id)
        size = self._coordinator.uploads.committed_size(caller().user_id, upload_id)
        return round_pb2.GetUploadResponse(committed_size=size)

    async def DownloadDealtModel(  # type: ignore[override]  # a coroutine that writes has no generator lifetime to reason about
        self,
        request: round_pb2.DownloadDealtModelRequest,
        context: Call,
    ) -> None:
        """Streams the model that the caller was assigned in a round."""
        packer = self._packer if a_packing(request.packing) else None
        training_id = fields.parse_id("training_id", request.training_id)
        base, blob = await self._coordinator.reads.assigned_model(training_id, request.round, caller().user_id)
        check_offset(blob, request.offset)
        info = convert.model_info(ModelInfo(base.model_id, base.version, blob))
        chunks = self._coordinator.models.read(blob, request.offset)
        await send_file(context, round_pb2.DownloadDealtModelResponse, info, chunks, packer)

    async def SubmitMetrics(
        self, request: round_pb2.SubmitMetricsRequest, context: Call
    ) -> round_pb2.SubmitMetricsResponse:
        """Accepts a report of an evaluation round."""
        training_id, user_id = fields.parse_id("training_id", request.training_id), caller().user_id
        async with self._coordinator.rejected_updates.counted(training_id, request.round, user_id):
            await self._submissions.submit_metrics(
                training_id,
                request.round,
                user_id,
                fields.a_num_examples(request.num_examples),
                fields.some_metrics(request.metrics),
            )
        return round_pb2.SubmitMetricsResponse()

    async def GetRound(self, request: round_pb2.GetRoundRequest, context: Call) -> round_pb2.GetRoundResponse:
        """Returns a round with what it waits for."""
        training_id = fields.parse_id("training_id", request.training_id)
        number = request.round if request.HasField("round") else None
        explanation = await self._coordinator.round_status.explain(training_id, number, caller().user_id)
        return round_pb2.GetRoundResponse(round=round_view.write(explanation))


class _Line:
    """The stream of a subscription."""

    __slots__ = ("_context", "_encode")

    def __init__(self, context: Call, encode: "Encoder") -> None:
        self._context = context
        self._encode = encode

    async def greet(self) -> None:
        await self._context.send_initial_metadata(())

    async def send(self, event: Event | Heartbeat | GoingAway) -> None:
        await self._context.write(self._encode(event))


class Encoder:
    """Encodes an event once for all subscribers to which the store returns the same object."""

    def __init__(self) -> None:
        """Creates it with an empty cache."""
        self._recent: OrderedDict[int, tuple[object, event_pb2.Event]] = OrderedDict()

    def __call__(self, event: Event | Heartbeat | GoingAway) -> event_pb2.Event:
        """Returns the message for an event; it is shared, and must not be modified."""
        if not isinstance(event, Event):
            return convert.event(event)
        # By identity: to compare events takes as long as to encode them. What is kept here has its id for itself.
        known = self._recent.get(id(event))
        if known is None:
            known = self._recent[id(event)] = event, convert.event(event)
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)
        return known[1]
