"""`fedround health`: a probe for service managers and container platforms."""

from __future__ import annotations

from typing import Annotated

import grpc
import typer
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from fedround_client.channel import Target
from fedround_client.command.output import echo
from fedround_client.command.session import Session
from fedround_client.probe import connection_error

CHECK = "/grpc.health.v1.Health/Check"
STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
"""The names of HealthCheckResponse.ServingStatus. The SDK does not depend on grpcio-health-checking."""


def health(
    context: typer.Context,
    service: Annotated[str, typer.Option(help="Full name of a service; the whole server by default.")] = "",
    live: Annotated[
        bool, typer.Option("--live", help="Succeed if the server answers, also while it shuts down.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that the answer may take.")] = 5.0,
) -> None:
    """Ask whether the server serves; exits with 0 if it does, else with 1. Needs no token."""
    session = Session.of(context)
    try:
        insecure = True if session.insecure else None
        target = Target(session.server, session.tls_ca, session.tls_cert, session.tls_key, insecure)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    status = ask(target, service, timeout)
    echo(status)
    if status != "SERVING" and not live:
        raise typer.Exit(1)


def ask(target: Target, service: str, timeout: float) -> str:
    """Returns what a server says of its health: the name of a status.

    Args:
        target: The server.
        service: Full name of a service; empty for the whole server.
        timeout: Seconds that the answer may take.

    Raises:
        FedroundError: There is no way to the server.
        OSError: A TLS file cannot be read.
    """
    with target.open_channel() as channel:
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
