"""A gRPC server whose handlers do nothing with what they get: the limit of gRPC's streams on this machine.

Prints its port.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from fedround.v1 import model_pb2, model_pb2_grpc, round_pb2, round_pb2_grpc
from fedround_client.payload import CHUNK
from fedround_server.counters import Counters
from fedround_server.grpc_server import OPTIONS, SERVICES
from fedround_server.host.allocator import keep_freed_blocks
from fedround_server.interceptors.chunk_codec import ChunkCodecInterceptor
from fedround_wire.chunk_codec import ChunkMessage

ZEROS = bytes(CHUNK)


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


class NullRounds(round_pb2_grpc.RoundServiceServicer):
    """Drops updates."""

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
    return grpc.aio.server(options=OPTIONS, interceptors=[ChunkCodecInterceptor(SERVICES, Counters())])


async def main() -> None:
    """Serves until it is ended."""
    server = lean_server()
    model_pb2_grpc.add_ModelServiceServicer_to_server(NullService(), server)
    round_pb2_grpc.add_RoundServiceServicer_to_server(NullRounds(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
