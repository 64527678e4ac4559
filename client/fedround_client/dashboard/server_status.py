"""What the server is doing, of servers that say it."""

from __future__ import annotations

from fedround.v1.server_pb2 import GetServerStatusRequest, ServerStatus
from fedround.v1.server_pb2_grpc import ServerServiceStub
from fedround_client.client import Client


def server_status(client: Client) -> ServerStatus:
    """Returns what the server is doing. For admins and viewers.

    Raises:
        Unimplemented: The server is older than this call.
    """
    return client._rpc.unary(ServerServiceStub(client._channel).GetServerStatus, GetServerStatusRequest()).status
