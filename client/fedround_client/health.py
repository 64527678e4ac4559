"""Health checks of servers (grpc.health.v1)."""

from __future__ import annotations

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from fedround_client.channel import Target
from fedround_client.probe import connection_error

CHECK = "/grpc.health.v1.Health/Check"
STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
"""The names of HealthCheckResponse.ServingStatus. The SDK does not depend on grpcio-health-checking."""


def ask_health(channel: grpc.Channel, target: Target, service: str, timeout: float) -> str:
    """Returns what a server says of its health: the name of a status.

    Args:
        channel: A channel to the server.
        target: The server.
        service: Full name of a service; empty for the whole server.
        timeout: Seconds that the answer may take.

    Raises:
        FedroundError: There is no way to the server.
    """
    # Messages of one text and one enum are encoded as these are.
    check: grpc.UnaryUnaryMultiCallable[StringValue, Int32Value] = channel.unary_unary(
        CHECK, request_serializer=StringValue.SerializeToString, response_deserializer=Int32Value.FromString
    )
    try:
        return STATUSES[check(StringValue(value=service), timeout=timeout, wait_for_ready=False).value]
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return "SERVICE_UNKNOWN"
        raise connection_error(error, target, target.server, is_first=True) from error
