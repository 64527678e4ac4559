"""The calls of ServerService: what the server is doing."""

from __future__ import annotations

from fedround.v1 import server_pb2
from fedround.v1.server_pb2 import ServerStatus
from fedround_client.rpc import Rpc


class ServerCalls:
    """The calls of ServerService."""

    _rpc: Rpc

    def server_status(self) -> ServerStatus:
        """Returns what the server is doing and what it uses. For admins and viewers.

        Counters begin at 0 when the server starts: rates are the differences between two calls.

        Raises:
            RoleRequired: You are neither an admin nor a viewer.
        """
        return self._rpc.unary(self._rpc.server.GetServerStatus, server_pb2.GetServerStatusRequest()).status
