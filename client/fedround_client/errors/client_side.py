"""The exceptions that the SDK raises without an error of the server."""

from fedround_client.errors.family import (
    Aborted,
    FailedPrecondition,
    FedroundError,
    PermissionDenied,
    ResourceExhausted,
    ServerUnavailable,
    Unimplemented,
)

__all__ = [
    "BaseMissing",
    "ClientClosed",
    "NoGrpcServer",
    "ProxyDenied",
    "ProxyUnreachable",
    "RemovedFromTraining",
    "RequestBodyLimit",
    "ResponseInvalid",
    "TlsFailed",
    "TrackerFailed",
    "TrainingFailed",
    "TrainingRemoved",
    "UnsupportedRound",
]


class UnsupportedRound(Unimplemented, reason="UNSUPPORTED_ROUND"):
    """A round asks for something that this participant cannot do."""


class BaseMissing(FailedPrecondition, reason="BASE_MISSING"):
    """A training needs a file of tensors that the server does not have, and the participant does not have it either."""


class TrainingFailed(Aborted):
    """The training ended in the state ERROR; the reason and the message are the training's own."""


class TrainingRemoved(Aborted, reason="TRAINING_REMOVED"):
    """The training was removed while the caller took part in it or waited for it."""


class RemovedFromTraining(Aborted, reason="CLIENT_REMOVED"):
    """The caller was removed from a training that it took part in."""


class ClientClosed(Aborted, reason="CLIENT_CLOSED"):
    """The client was closed during the call."""


class NoGrpcServer(FailedPrecondition, reason="NO_GRPC_SERVER"):
    """Something answers at the server's address, or on the way to it, but not with gRPC: a web server, for example."""


class RequestBodyLimit(ResourceExhausted, reason="REQUEST_BODY_LIMIT"):
    """A proxy on the way to the server limits the size of requests."""


class ProxyUnreachable(ServerUnavailable, reason="PROXY_UNREACHABLE"):
    """The HTTP proxy that the environment names cannot be reached."""


class ProxyDenied(PermissionDenied, reason="PROXY_DENIED"):
    """The HTTP proxy that the environment names does not allow a connection to the server."""


class TlsFailed(FailedPrecondition):
    """No encrypted connection to the server is possible.

    The reason is one of TLS_UNKNOWN_AUTHORITY, TLS_EXPIRED, TLS_NOT_YET_VALID, TLS_WRONG_NAME, TLS_CERTIFICATE_INVALID,
    TLS_REQUIRED (the server expects TLS), TLS_NOT_OFFERED (it does not), TLS_CLIENT_CERTIFICATE and TLS_FILE_INVALID.
    """


class TrackerFailed(FailedPrecondition, reason="TRACKER_FAILED"):
    """A tracker cannot write: its output belongs to another training, for example, or cannot be reached."""


class ResponseInvalid(FedroundError, reason="RESPONSE_INVALID"):
    """The server answered with a message that cannot be decoded, or holds a value that is impossible."""
