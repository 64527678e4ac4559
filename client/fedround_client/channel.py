"""Channels to a server: encrypted unless it runs on this machine, alive or known to be dead, patient with restarts."""

from __future__ import annotations

import ipaddress
import json
from os import PathLike
from pathlib import Path

import grpc

MESSAGE_LIMIT = 2 * 2**20

# Calls that have the same effect once and twice; the others are left to the caller.
_REPEATABLE = {
    "UserService": ("GetUser", "GetUsers", "GetMyself"),
    "TrainingService": ("GetTraining", "GetTrainings", "RegisterClients", "StartTraining"),
    "ModelService": ("GetModel", "GetModels", "GetModelVersions", "TagModelVersion", "GetMetrics"),
    "RoundService": ("GetUpload", "GetRound"),
    "InferenceService": ("Predict",),
}

_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [
                {"service": f"fedround.v1.{service}", "method": method}
                for service, methods in _REPEATABLE.items()
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
    # A peer that hangs is found after 40 s; without the ping timeout it would be 90 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    # Participants train for hours without sending anything; their stream must still be watched.
    ("grpc.http2.max_pings_without_data", 0),
    # A restarted server is found within seconds; the default waits up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
)


def is_loopback(server: str) -> bool:
    """Whether an address HOST:PORT (or unix:PATH) leads to this machine only."""
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
    """Opens a channel; it connects with the first call.

    Args:
        server: HOST:PORT.
        tls_ca: PEM file of the authority that signed the server's certificate; None for those the machine trusts.
        tls_cert: PEM file of the client's certificate, if the server wants one.
        tls_key: PEM file of its key.
        insecure: True for plaintext, False for TLS; None for plaintext on loopback if no TLS file is given.

    Raises:
        ValueError: Plaintext and TLS files are asked for at once, or one of certificate and key is missing.
        OSError: A file cannot be read.
    """
    files = any(path is not None for path in (tls_ca, tls_cert, tls_key))
    if insecure and files:
        raise ValueError("insecure means plaintext, which no TLS file goes with.")
    if (tls_cert is None) != (tls_key is None):
        raise ValueError("A client certificate takes both tls_cert and tls_key.")
    plaintext = insecure if insecure is not None else is_loopback(server) and not files
    # A proxy would take what is meant for this machine, the token too, elsewhere.
    options = (*OPTIONS, ("grpc.enable_http_proxy", 0)) if is_loopback(server) else OPTIONS
    if plaintext:
        return grpc.insecure_channel(server, options=options)
    ca, key, cert = (None if path is None else Path(path).read_bytes() for path in (tls_ca, tls_key, tls_cert))
    credentials = grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)
    return grpc.secure_channel(server, credentials, options=options)
