"""Channels to a server: encryption, keepalive, and repeated calls while the server restarts."""

from __future__ import annotations

import json
import socket
from collections import Counter
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import grpc

from fedround_client.address import check_address, host_and_port, is_ip, is_loopback, proxy_for, split_addresses

MESSAGE_LIMIT = 2 * 2**20

# Methods that are idempotent. Other calls are not repeated.
_IDEMPOTENT = {
    "UserService": ("GetUser", "GetUsers", "GetMyself"),
    "TrainingService": ("GetTraining", "GetTrainings", "RegisterClients", "StartTraining"),
    # These have a request_id.
    "ControlService": ("StopTraining", "PauseTraining", "ResumeTraining", "UpdateConfig"),
    "ModelService": ("GetModel", "GetModels", "GetModelVersions", "TagModelVersion", "GetMetrics"),
    "RoundService": ("GetUpload", "ReportFailure", "GetRound", "GetRounds"),
    "InferenceService": ("Predict",),
}

IDEMPOTENT = frozenset(
    f"/fedround.v1.{service}/{method}" for service, methods in _IDEMPOTENT.items() for method in methods
)

_RETRIES = {
    "methodConfig": [
        {
            "name": [
                {"service": f"fedround.v1.{service}", "method": method}
                for service, methods in _IDEMPOTENT.items()
                for method in methods
            ],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "3s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    # Detects a dead connection after 40 s; without the ping timeout it would be 90 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    # Participants train for hours without sending data, and still need the pings.
    ("grpc.http2.max_pings_without_data", 0),
    # Reconnects to a restarted server within seconds; by default it may take two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)

# For one of several replicas: another one is used after 13 s without an answer to a ping, or 5 s without a connection.
_REPLICA_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.keepalive_time_ms", 8_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),
)


@dataclass(frozen=True)
class Target:
    """A server, and how to connect to it.

    Attributes:
        server: HOST:PORT.
        tls_ca: PEM file of the authority that signed the server's certificate; None for those that the machine trusts.
        tls_cert: PEM file of the client's certificate, if the server requires one.
        tls_key: PEM file of its key.
        insecure: True for plaintext, False for TLS; None for plaintext on loopback if no TLS file is given.
    """

    server: str
    tls_ca: str | PathLike[str] | None = None
    tls_cert: str | PathLike[str] | None = None
    tls_key: str | PathLike[str] | None = None
    insecure: bool | None = None

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
            ValueError: The address is not HOST:PORT; or both plaintext and a TLS file are given, or only one of
                certificate and key.
        """
        check_address(self.server)
        if self.insecure and self._has_tls_file:
            raise ValueError("insecure means plaintext: give no TLS file.")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("A client certificate needs both tls_cert and tls_key.")

    @property
    def _has_tls_file(self) -> bool:
        return any(path is not None for path in (self.tls_ca, self.tls_cert, self.tls_key))

    @property
    def plaintext(self) -> bool:
        """Whether connections are not encrypted."""
        return self.insecure if self.insecure is not None else is_loopback(self.server) and not self._has_tls_file

    def open_channel(self, *, is_replica: bool = False) -> grpc.Channel:
        """Returns a channel, which connects with the first call.

        Args:
            is_replica: Whether it is one of several, and the caller repeats calls at another one.

        Raises:
            OSError: A file cannot be read.
        """
        options = dict(OPTIONS)
        if is_replica:
            options |= _REPLICA_OPTIONS
        if is_loopback(self.server):
            # A proxy would send data for this machine, and the token, to another one.
            options["grpc.enable_http_proxy"] = 0
        config: dict[str, Any] = {} if is_replica else dict(_RETRIES)
        if _has_several_addresses(self.server):
            config["loadBalancingConfig"] = [{"round_robin": {}}]
        options["grpc.service_config"] = json.dumps(config)
        if self.plaintext:
            return grpc.insecure_channel(self.server, options=tuple(options.items()))
        paths = (self.tls_ca, self.tls_key, self.tls_cert)
        ca, key, cert = (None if path is None else Path(path).read_bytes() for path in paths)
        credentials = grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)
        return grpc.secure_channel(self.server, credentials, options=tuple(options.items()))


def parse_targets(
    servers: str,
    tls_ca: str | PathLike[str] | None = None,
    tls_cert: str | PathLike[str] | None = None,
    tls_key: str | PathLike[str] | None = None,
    insecure: bool | None = None,
) -> tuple[Target, ...]:
    """Returns the targets for an address, or for a list like a:50051,b:50051; the arguments are those of `Target`.

    Raises:
        ValueError: As for `Target`; the message names the entry.
    """
    return tuple(Target(server, tls_ca, tls_cert, tls_key, insecure) for server in split_addresses(servers))


def open_channel(
    server: str,
    *,
    tls_ca: str | PathLike[str] | None = None,
    tls_cert: str | PathLike[str] | None = None,
    tls_key: str | PathLike[str] | None = None,
    insecure: bool | None = None,
) -> grpc.Channel:
    """Returns a channel to a server, which connects with the first call; the arguments are those of `Target`.

    Raises:
        ValueError: The arguments contradict each other, or the address is not HOST:PORT.
        OSError: A file cannot be read.
    """
    return Target(server, tls_ca, tls_cert, tls_key, insecure).open_channel()


def _has_several_addresses(server: str) -> bool:
    """Returns whether a name stands for several machines: it has more than one IP address of a family."""
    place = host_and_port(server)
    if place is None or is_loopback(server) or is_ip(place[0]) or proxy_for(server) is not None:
        return False
    try:
        found = socket.getaddrinfo(*place, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return max(Counter(family for family, *_ in found).values(), default=0) > 1
