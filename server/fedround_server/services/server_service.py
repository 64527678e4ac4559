"""ServerService."""

from fedround.v1 import server_pb2, server_pb2_grpc
from fedround_server.coordinator import Coordinator
from fedround_server.coordinator.collection import SOONEST_SECONDS
from fedround_server.interceptors.wrapping import Call


class ServerService(server_pb2_grpc.ServerServiceServicer):
    """Serves those who operate the server."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._collection = coordinator.collection

    async def CollectFiles(
        self, request: server_pb2.CollectFilesRequest, context: Call
    ) -> server_pb2.CollectFilesResponse:
        """Removes the files that nothing needs."""
        found = await self._collection.collect(SOONEST_SECONDS)
        return server_pb2.CollectFilesResponse(num_files=found.num_files, size_bytes=found.size_bytes)
