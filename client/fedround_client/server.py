"""The calls of ServerService: what the server is doing, and its upkeep."""

from __future__ import annotations

from fedround.v1 import server_pb2
from fedround.v1.server_pb2 import CollectFilesResponse, ServerStatus
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

    def collect_files(self) -> CollectFilesResponse:
        """Deletes the files that nothing needs any more now, instead of within a day. For admins.

        Files that were stored within the last hour stay, and so do uploads that were continued within the last day.

        Returns:
            How many files were deleted, and their size in bytes.

        Raises:
            BackupInProgress: A backup is being made, which may need them.
            RoleRequired: You are not an admin.
        """
        return self._rpc.unary(self._rpc.server.CollectFiles, server_pb2.CollectFilesRequest(), timeout=None)
