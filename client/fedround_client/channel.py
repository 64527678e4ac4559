"""Channels to a server: encryption, keepalive, and repeated calls while the server restarts."""

from __future__ import annotations

import ipaddress
import json
from os import PathLike
from pathlib import Path

import grpc

MESSAGE_LIMIT = 2 * 2**20

# Methods that are idempotent. Other calls are not repeated.
_IDEMPOTENT = {
    "UserService": ("GetUser", "GetUsers", "GetMyself"),
    "TrainingService": ("GetTraining", "GetTrainings", "RegisterClients", "StartTraining"),
    "ModelService": ("GetModel", "GetModels", "GetModelVersions", "TagModelVersion", "GetMetrics"),
    "RoundService": ("GetUpload", "ReportFailure", "GetRound"),
    "InferenceService": ("Predict",),
}

_SERVICE_CONFIG = {
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
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
)


def is_loopback(server: str) -> bool:
    """Returns whether an address HOST:PORT (or unix:PATH) is on this machine."""
    if server.startswith("unix:"):
        return True
    host = server.rpartition("/")[2].rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_channel(
    server: str,
    *,
    tls_ca: str | PathLike[str] | None = None,
    tls_cert: str | PathLike[str] | None = None,
    tls_key: str | PathLike[str] | None = None,
    insecure: bool | None = None,
) -> grpc.Channel:
    """Returns a channel, which connects with the first call.

    Args:
        server: HOST:PORT.
        tls_ca: PEM file of the authority that signed the server's certificate; None for those that the machine trusts.
        tls_cert: PEM file of the client's certificate, if the server requires one.
        tls_key: PEM file of its key.
        insecure: True for plaintext, False for TLS; None for plaintext on loopback if no TLS file is given.

    Raises:
        ValueError: Both plaintext and a TLS file are given, or only one of certificate and key.
        OSError: A file cannot be read.
    """
    files = any(path is not None for path in (tls_ca, tls_cert, tls_key))
    if insecure and files:
        raise ValueError("insecure means plaintext: give no TLS file.")
    if (tls_cert is None) != (tls_key is None):
        raise ValueError("A client certificate needs both tls_cert and tls_key.")
    plaintext = insecure if insecure is not None else is_loopback(server) and not files
    # A proxy would send data for this machine, and the token, to another one.
    options = (*OPTIONS, ("grpc.enable_http_proxy", 0)) if is_loopback(server) else OPTIONS
    if plaintext:
        return grpc.insecure_channel(server, options=options)
    ca, key, cert = (None if path is None else Path(path).read_bytes() for path in (tls_ca, tls_key, tls_cert))
    credentials = grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)
    return grpc.secure_channel(server, credentials, options=options)
