"""Not a system, but what these clients cost any server here: the calls of a round, answered from memory.

It has the options, the codec and the allocator of a fedround server, and the clients of fedround.py, to whom it pushes
small models if they ask. It asks for no credentials, checks nothing that comes, and writes, logs and remembers
nothing: only the model of each round is hashed, once, for the clients. So it is what any server in Python over gRPC has
to spend; but it keeps all updates of a round in memory that was not used before, which may take longer than to write
large ones to disk.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import google_crc32c
import numpy as np
from safetensors.numpy import load, save

from fedround.v1 import event_pb2, model_pb2, model_pb2_grpc, round_pb2, round_pb2_grpc
from fedround_client.payload import CHUNK
from fedround_wire.chunk_codec import ChunkMessage
from null_server import lean_server
from peers.common import Processes, Workload, free_port, tell, tell_end, tell_round, wait_for_port
from peers.fedround import digest, take_part


class Services(round_pb2_grpc.RoundServiceServicer, model_pb2_grpc.ModelServiceServicer):
    """The rounds of one training, whose participants are those that subscribe."""

    def __init__(self, workload: Workload) -> None:
        """Waits for all participants."""
        self.ended = asyncio.Event()
        self._workload = workload
        self._layers = {f"layer{number}": layer for number, layer in enumerate(workload.layers())}
        self._model: list[ChunkMessage] = []
        self._subscribers: list[asyncio.Queue[bytes | None]] = []
        self._inline_bytes = 0
        self._updates: list[bytes] = []
        self._round = 0

    async def Subscribe(self, request: round_pb2.SubscribeRequest, context: Any) -> None:  # noqa: N802
        """Tells of the rounds."""
        events: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._subscribers.append(events)
        self._inline_bytes = request.inline_model_bytes
        if len(self._subscribers) == self._workload.clients:
            self._start_round()
        while event := await events.get():
            await context.write(event)

    async def DownloadModel(self, request: model_pb2.DownloadModelRequest, context: Any) -> None:  # noqa: N802
        """Sends the model."""
        for frame in self._model:
            await context.write(frame)

    async def SubmitUpdate(  # noqa: N802
        self, requests: AsyncIterator[round_pb2.SubmitUpdateRequest], context: Any
    ) -> round_pb2.SubmitUpdateResponse:
        """Takes an update; the last one ends the round."""
        self._updates.append(b"".join([request.chunk async for request in requests]))
        if len(self._updates) == self._workload.clients:
            asyncio.get_running_loop().call_soon(self._end_round)
        return round_pb2.SubmitUpdateResponse()

    def _start_round(self) -> None:
        tell_round()
        self._round += 1
        data = save(self._layers)
        chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
        self._model = [ChunkMessage(chunk, google_crc32c.value(chunk)) for chunk in chunks]
        info = event_pb2.ModelInfo(sha256=digest(chunks), size_bytes=len(data))
        started = event_pb2.RoundStarted(round=self._round, model=info)
        if len(data) <= self._inline_bytes:
            started.inline_model = data
        # As the server has it, for whom the codec leaves events as they are.
        self._tell_all(event_pb2.Event(round_started=started).SerializeToString())

    def _end_round(self) -> None:
        updates = [load(update) for update in self._updates]
        self._updates.clear()
        self._layers = {name: np.mean([update[name] for update in updates], axis=0) for name in self._layers}
        if self._round < self._workload.rounds:
            self._start_round()
            return
        tell_end()
        tell("first", self._layers["layer0"][0])
        self._tell_all(None)
        self.ended.set()

    def _tell_all(self, event: bytes | None) -> None:
        for events in self._subscribers:
            events.put_nowait(event)


async def serve(workload: Workload, port: int) -> None:
    """Serves one training."""
    server = lean_server()
    services = Services(workload)
    round_pb2_grpc.add_RoundServiceServicer_to_server(services, server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(services, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await services.ended.wait()
    await server.stop(5)


def run_server(workload: Workload, port: int) -> None:
    asyncio.run(serve(workload, port))


def run(workload: Workload) -> None:
    """Runs one training."""
    tell("version", "")
    port = free_port()
    processes = Processes()
    processes.start("server", run_server, workload, port)
    wait_for_port(port)
    for number in range(workload.clients):
        processes.start("client", take_part, number, f"127.0.0.1:{port}", "", "")
    processes.join()
