"""RoundService."""

from collections.abc import AsyncIterator, Mapping
from datetime import timedelta

from fedround.v1 import event_pb2, round_pb2, round_pb2_grpc
from fedround_server.coordinator import Coordinator
from fedround_server.coordinator.check_in import Full
from fedround_server.coordinator.inline_models import MAX_INLINE_BYTES, InlineModels
from fedround_server.coordinator.served_files import ServedFile
from fedround_server.coordinator.subscription import GoingAway, Heartbeat
from fedround_server.domain.errors import FieldInvalid, RoleRequired
from fedround_server.domain.event import Event, ModelInfo, RoundStarted
from fedround_server.domain.partial_sum import MAX_NUM_EXAMPLES as MAX_SUM_EXAMPLES
from fedround_server.domain.training import MAX_NUM_EXAMPLES
from fedround_server.interceptors.auth import caller
from fedround_server.interceptors.wrapping import Call
from fedround_server.services import convert, fields, pages, round_view
from fedround_server.services.chunks import ChunkStream, check_offset, incoming, send_file
from fedround_server.services.compression import Compressor, parse_compression
from fedround_server.services.event_encoder import EventEncoder

MAX_EVENTS_BYTES = 1 << 20
"""Size of the events in one response to a check-in, unless the first one alone is larger."""
MAX_WAIT = timedelta(days=3650)


class RoundService(round_pb2_grpc.RoundServiceServicer):
    """Serves the participants of rounds, and actors that watch them."""

    def __init__(self, coordinator: Coordinator, compressor: Compressor) -> None:
        self._compressor = compressor
        self._coordinator = coordinator
        self._submissions = coordinator.submissions
        self._encoder = EventEncoder()
        self._inline_models = coordinator.inline_models

    async def Subscribe(  # type: ignore[override]  # a coroutine that writes has no generator lifetime to reason about
        self,
        request: round_pb2.SubscribeRequest,
        context: Call,
    ) -> None:
        """Streams events."""
        training_id = fields.parse_optional_id("training_id", request.training_id)
        cursors = _parse_cursors(request.resume_after_sequence)
        session_id = fields.parse_optional_id("session_id", request.session_id)
        attributes = fields.parse_attributes("attributes", request.attributes)
        if caller().is_viewer and session_id is not None:
            raise RoleRequired("a viewer takes part in no training: subscribe without session_id, which is for clients")
        limit = fields.parse_at_most("inline_model_bytes", request.inline_model_bytes, MAX_INLINE_BYTES)
        if caller().is_viewer:
            # It reads what actors read, and no round asks it for anything.
            limit = 0
        subscriber = _Subscriber(context, self._encoder, self._inline_models, limit)
        await self._coordinator.subscriptions.follow(
            caller().user_id,
            training_id,
            cursors,
            subscriber.send,
            subscriber.greet,
            session_id,
            attributes,
            is_viewer=caller().is_viewer,
        )

    async def CheckIn(self, request: round_pb2.CheckInRequest, context: Call) -> round_pb2.CheckInResponse:
        """Returns what is new, and when to ask again."""
        response = round_pb2.CheckInResponse()
        size = 0

        def add(event: Event) -> None:
            nonlocal size
            encoded = self._encoder.encode(event)
            size += len(encoded)
            if size > MAX_EVENTS_BYTES and response.events:
                raise Full
            response.events.add().ParseFromString(encoded)

        checked = await self._coordinator.check_ins.check_in(
            caller().user_id,
            fields.parse_optional_id("training_id", request.training_id),
            _parse_cursors(request.resume_after_sequence),
            add,
            fields.parse_optional_id("session_id", request.session_id),
            fields.parse_attributes("attributes", request.attributes),
            fields.parse_optional_duration("last_retry_after", request, MAX_WAIT),
        )
        response.resume_after_sequence.update(checked.resume_after)
        response.retry_after.FromTimedelta(checked.retry_after)
        response.ended = checked.ended
        return response

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
            file = incoming(
                stream, "spec.", spec.sha256, spec.size_bytes, spec.upload_id, spec.offset, training_id, spec.round
            )
            if file.sha256 is None:
                raise FieldInvalid("spec.sha256", "is required: the SHA-256 of the file, in hex")
            if file.size_bytes is None:
                raise FieldInvalid("spec.size_bytes", "is required: the size of the file in bytes")
            update = await self._submissions.submit(
                training_id,
                spec.round,
                fields.parse_num_examples(
                    spec.num_examples, MAX_SUM_EXAMPLES if spec.num_updates else MAX_NUM_EXAMPLES
                ),
                fields.parse_metrics(spec),
                file,
                local_steps=spec.local_steps or None,
                initial_loss=spec.initial_loss if spec.HasField("initial_loss") else None,
                base_version=spec.base_version if spec.HasField("base_version") else None,
                num_updates=spec.num_updates,
            )
        return round_pb2.SubmitUpdateResponse(receipt=convert.receipt(update))

    async def GetUpload(self, request: round_pb2.GetUploadRequest, context: Call) -> round_pb2.GetUploadResponse:
        """Returns how many bytes of an upload the server has stored."""
        upload_id = fields.parse_id("upload_id", request.upload_id)
        size = await self._coordinator.uploads.committed_size(caller().user_id, upload_id)
        return round_pb2.GetUploadResponse(committed_size=size)

    async def DownloadAssignedModel(  # type: ignore[override]  # a coroutine that writes has no generator lifetime to reason about
        self,
        request: round_pb2.DownloadAssignedModelRequest,
        context: Call,
    ) -> None:
        """Streams the model that is assigned to the caller."""
        compressor = self._compressor if parse_compression(request.compression) else None
        training_id = fields.parse_id("training_id", request.training_id)
        base, blob = await self._coordinator.reads.assigned_model(training_id, request.round, caller().user_id)
        check_offset(blob.size_bytes, request.offset)
        info = convert.model_info(ModelInfo(base.model_id, base.version, blob))
        what = f"the model that is assigned to you in round {request.round} of the training {training_id}"
        chunks = self._coordinator.models.read(ServedFile.of(what, base.version, blob), request.offset)
        await send_file(context, round_pb2.DownloadAssignedModelResponse, info, chunks, compressor)

    async def DownloadControl(  # type: ignore[override]  # a coroutine that writes has no generator lifetime to reason about
        self,
        request: round_pb2.DownloadControlRequest,
        context: Call,
    ) -> None:
        """Streams the control variate of a round, if there is one yet."""
        compressor = self._compressor if parse_compression(request.compression) else None
        training_id = fields.parse_id("training_id", request.training_id)
        base, blob = await self._coordinator.reads.control_variate(training_id, request.round, caller().user_id)
        check_offset(0 if blob is None else blob.size_bytes, request.offset)
        if blob is None:
            nothing = event_pb2.ModelInfo(model_id=base.model_id, version=base.version)
            await context.write(round_pb2.DownloadControlResponse(info=nothing))
            return
        info = convert.model_info(ModelInfo(base.model_id, base.version, blob))
        what = f"the control variate of round {request.round} of the training {training_id}"
        chunks = self._coordinator.models.read(ServedFile.of(what, base.version, blob), request.offset)
        await send_file(context, round_pb2.DownloadControlResponse, info, chunks, compressor)

    async def SubmitMetrics(
        self, request: round_pb2.SubmitMetricsRequest, context: Call
    ) -> round_pb2.SubmitMetricsResponse:
        """Accepts the metrics of an evaluation."""
        training_id, user_id = fields.parse_id("training_id", request.training_id), caller().user_id
        async with self._coordinator.rejected_updates.counted(training_id, request.round, user_id):
            await self._submissions.submit_metrics(
                training_id,
                request.round,
                user_id,
                fields.parse_num_examples(request.num_examples),
                fields.parse_metrics(request),
            )
        return round_pb2.SubmitMetricsResponse()

    async def ReportFailure(
        self, request: round_pb2.ReportFailureRequest, context: Call
    ) -> round_pb2.ReportFailureResponse:
        """Records that the caller cannot deliver in a round."""
        await self._coordinator.rounds.report_failure(
            fields.parse_id("training_id", request.training_id),
            request.round,
            caller().user_id,
            fields.parse_failure_reason("reason", request.reason),
            request.message,
        )
        return round_pb2.ReportFailureResponse()

    async def GetRound(self, request: round_pb2.GetRoundRequest, context: Call) -> round_pb2.GetRoundResponse:
        """Returns a round with the reason why it is waiting."""
        training_id = fields.parse_id("training_id", request.training_id)
        number = request.round if request.HasField("round") else None
        if request.view not in round_pb2.RoundView.values():
            raise FieldInvalid("view", f"is {request.view}; known are {', '.join(round_pb2.RoundView.keys()[1:])}")
        page = round_view.read_page(request)
        reader_id = await self._coordinator.reads.reader_of_training(caller(), training_id)
        if request.view == round_pb2.ROUND_VIEW_SUMMARY:
            summary = await self._coordinator.round_status.summarize(training_id, number, reader_id)
            return round_pb2.GetRoundResponse(round=round_view.write(summary))
        explanation = await self._coordinator.round_status.explain(training_id, number, reader_id, page)
        return round_view.write_page(explanation)

    async def GetRounds(self, request: round_pb2.GetRoundsRequest, context: Call) -> round_pb2.GetRoundsResponse:
        """Lists the rounds of a training."""
        training_id = fields.parse_id("training_id", request.training_id)
        size = pages.parse_size(request.page_size)
        position = pages.parse_token(request.page_token, int)
        reader_id = await self._coordinator.reads.reader_of_training(caller(), training_id)
        before = position[0] if position else None
        found = await self._coordinator.round_status.page(training_id, reader_id, before, size + 1)
        page, token = pages.cut(found, size, round_view.write, lambda one: pages.format_token(one.view.round.number))
        return round_pb2.GetRoundsResponse(rounds=page, next_page_token=token)


def _parse_cursors(found: Mapping[str, int]) -> dict[str, int]:
    cursors = {fields.parse_id("resume_after_sequence", key): sequence for key, sequence in found.items()}
    if any(sequence >= 1 << 62 for sequence in cursors.values()):
        raise FieldInvalid("resume_after_sequence", "has a sequence beyond the end of any log")
    return cursors


class _Subscriber:
    """The stream to a subscriber, who takes models of a size in bytes."""

    __slots__ = ("_context", "_encoder", "_limit", "_models", "_sent")

    def __init__(self, context: Call, encoder: EventEncoder, models: InlineModels, limit: int) -> None:
        self._context = context
        self._encoder = encoder
        self._models = models
        self._limit = limit
        # The digest of the model that was sent last.
        self._sent = ""

    async def greet(self) -> None:
        await self._context.send_initial_metadata(())

    async def send(self, event: Event | Heartbeat | GoingAway) -> None:
        if self._limit and isinstance(event, Event) and isinstance(event.payload, RoundStarted):
            await self._start_round(event, event.payload)
        else:
            await self._context.write(self._encoder.encode(event))

    async def _start_round(self, event: Event, started: RoundStarted) -> None:
        async with self._models.lend(started, caller().user_id, self._limit, self._sent) as model:
            await self._context.write(self._encoder.encode(event, model))
            if model is not None:
                self._sent = model.sha256
