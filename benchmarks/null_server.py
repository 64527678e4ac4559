"""A gRPC server whose handlers do nothing with what they get: the limit of gRPC's streams on this machine.

Prints its port.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from fedround.v1 import event_pb2, model_pb2, model_pb2_grpc, round_pb2, round_pb2_grpc, training_pb2, training_pb2_grpc
from fedround_client.payload import CHUNK
from fedround_server.counters import Counters
from fedround_server.grpc_server import OPTIONS, SERVICES
from fedround_server.host.allocator import keep_freed_blocks
from fedround_server.interceptors.chunk_codec import ChunkCodecInterceptor
from fedround_wire.chunk_codec import ChunkMessage

ZEROS = bytes(CHUNK)
WAITING = 1 << 16
"""How many calls may wait to be taken: as many subscribers may come at once."""


class NullService(model_pb2_grpc.ModelServiceServicer):
    """Drops uploads, and sends the same chunk again and again."""

    async def UploadModel(  # noqa: N802
        self, requests: AsyncIterator[model_pb2.UploadModelRequest], _: Any
    ) -> model_pb2.UploadModelResponse:
        """Drops what comes."""
        async for _request in requests:
            pass
        return model_pb2.UploadModelResponse()

    async def DownloadModel(self, request: model_pb2.DownloadModelRequest, context: Any) -> None:  # noqa: N802
        """Sends as many bytes as the offset says."""
        for _ in range(0, request.offset, CHUNK):
            await context.write(ChunkMessage(ZEROS, 0))


class Streams:
    """The subscribers, each of which waits for the next event."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[tuple[bool, bytes]]] = []
        self._sequence = 0

    def next(self) -> "asyncio.Future[tuple[bool, bytes]]":
        """Returns whether the next event is the last one, and the event, once it is there."""
        self._waiting.append(asyncio.get_running_loop().create_future())
        return self._waiting[-1]

    def tell(self, event: event_pb2.Event) -> None:
        """Gives all an event."""
        self._sequence += 1
        event.sequence = self._sequence
        waiting, self._waiting = self._waiting, []
        message = event.SerializeToString()
        for future in waiting:
            if not future.done():
                future.set_result((event.HasField("training_removed"), message))


class NullTrainings(training_pb2_grpc.TrainingServiceServicer):
    """Ends the streams to subscribers."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def RemoveTraining(self, _request: Any, _: Any) -> training_pb2.RemoveTrainingResponse:  # noqa: N802
        """Sends all subscribers the last event."""
        self._streams.tell(event_pb2.Event(training_removed=event_pb2.TrainingRemoved()))
        return training_pb2.RemoveTrainingResponse()


class NullRounds(round_pb2_grpc.RoundServiceServicer):
    """Drops updates, and sends subscribers an event for each failure that is reported."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def Subscribe(self, _: round_pb2.SubscribeRequest, context: Any) -> None:  # noqa: N802
        """Sends events, as bytes, up to the last one."""
        await context.send_initial_metadata(())
        is_last = False
        while not is_last:
            is_last, message = await self._streams.next()
            await context.write(message)

    async def ReportFailure(self, _request: Any, _: Any) -> round_pb2.ReportFailureResponse:  # noqa: N802
        """Sends all subscribers an event."""
        self._streams.tell(event_pb2.Event(round_extended=event_pb2.RoundExtended()))
        return round_pb2.ReportFailureResponse()

    async def SubmitUpdate(  # noqa: N802
        self, requests: AsyncIterator[round_pb2.SubmitUpdateRequest], _: Any
    ) -> round_pb2.SubmitUpdateResponse:
        """Drops what comes, and answers as if it were accepted."""
        async for _request in requests:
            pass
        return round_pb2.SubmitUpdateResponse()


def lean_server() -> grpc.aio.Server:
    """Makes a server with the options, the codec and the allocator of a fedround server, and nothing else."""
    keep_freed_blocks()
    waiting = [
        ("grpc.server.max_pending_requests", WAITING),
        ("grpc.server.max_pending_requests_hard_limit", WAITING),
    ]
    return grpc.aio.server(options=[*OPTIONS, *waiting], interceptors=[ChunkCodecInterceptor(SERVICES, Counters())])


async def main() -> None:
    """Serves until it is ended."""
    server = lean_server()
    model_pb2_grpc.add_ModelServiceServicer_to_server(NullService(), server)
    streams = Streams()
    round_pb2_grpc.add_RoundServiceServicer_to_server(NullRounds(streams), server)
    training_pb2_grpc.add_TrainingServiceServicer_to_server(NullTrainings(streams), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
