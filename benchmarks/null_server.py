"""A gRPC server whose handlers do nothing with what they get: the limit of gRPC's streams on this machine.

It has the options, the codec and the allocator of a fedround server. Prints its port.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from fedround.v1 import model_pb2, model_pb2_grpc
from fedround_server.app import OPTIONS, SERVICES
from fedround_server.interceptors.frames import FrameInterceptor
from fedround_server.memory import keep_freed_blocks
from fedround_wire.frames import Frame

CHUNK = bytes(3 << 18)


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
        for _ in range(0, request.offset, len(CHUNK)):
            await context.write(Frame(CHUNK, 0))


async def main() -> None:
    """Serves until it is ended."""
    keep_freed_blocks()
    server = grpc.aio.server(options=OPTIONS, interceptors=[FrameInterceptor(SERVICES)])
    model_pb2_grpc.add_ModelServiceServicer_to_server(NullService(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
