"""What can go wrong, as exceptions: one class a status code, and below it one class a reason of the server.

`except NotFound` catches every unknown id, `except TrainingNotFound` only a training's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from fedround.v1.event_pb2 import Event

DOMAIN = "fedround"

_CUT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)

_PASSING = frozenset({"UPLOAD_INCOMPLETE", "TOO_MANY_UPLOADS", "TOO_MANY_STREAMS"})


class FedroundError(Exception):
    """An error answered by the server, or met on the way to it.

    Attributes:
        code: The gRPC status code.
        reason: UPPER_SNAKE, for programs; the code's name if the server gave no reason.
        message: What happened and what to do next, for people.
        metadata: More about the reason, by name.
        field_violations: For each refused field of the request, what is wrong with it.
    """

    _by_code: ClassVar[dict[grpc.StatusCode, type[FedroundError]]] = {}
    _by_reason: ClassVar[dict[str, type[FedroundError]]] = {}

    def __init_subclass__(cls, *, code: grpc.StatusCode | None = None, reason: str = "") -> None:
        """Registers the class for the code or the reason that it stands for."""
        if code is not None:
            FedroundError._by_code[code] = cls
        if reason:
            FedroundError._by_reason[reason] = cls

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        metadata: Mapping[str, str] | None = None,
        field_violations: Mapping[str, str] | None = None,
    ) -> None:
        """Makes the error; see the attributes of the class."""
        super().__init__(code, reason, message, metadata, field_violations)
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.field_violations = dict(field_violations or {})

    def __str__(self) -> str:
        """The reason, the message and the refused fields in one line."""
        told = {field: text for field, text in self.field_violations.items() if text not in self.message}
        fields = "".join(f"; {field}: {text}" for field, text in told.items())
        return f"{self.reason}: {self.message}{fields}"

    @property
    def transient(self) -> bool:
        """Whether the same call may succeed a little later."""
        if self.reason in _PASSING or self.code is grpc.StatusCode.UNAVAILABLE:
            return True
        # A server that dies, or a cut connection, leaves one of these codes and no reason; an answer has a reason, and
        # a mistake in the server an id in its log.
        return self.code in _CUT and self.reason == self.code.name and "error_id" not in self.metadata


class Unauthenticated(FedroundError, code=grpc.StatusCode.UNAUTHENTICATED):
    """The server does not know who is calling."""


class TokenMissing(Unauthenticated, reason="TOKEN_MISSING"):
    """The call carried no token."""


class TokenInvalid(Unauthenticated, reason="TOKEN_INVALID"):
    """The token is unknown, or was revoked."""


class PermissionDenied(FedroundError, code=grpc.StatusCode.PERMISSION_DENIED):
    """The caller may not do this."""


class RoleRequired(PermissionDenied, reason="ROLE_REQUIRED"):
    """The caller's role does not allow this call."""


class NotActor(PermissionDenied, reason="NOT_ACTOR"):
    """Only the training's actor may do this."""


class NotInCohort(PermissionDenied, reason="NOT_IN_COHORT"):
    """The caller does not take part in the round."""


class NotFound(FedroundError, code=grpc.StatusCode.NOT_FOUND):
    """The id does not exist, or the caller has no part in it."""


class TrainingNotFound(NotFound, reason="TRAINING_NOT_FOUND"):
    """The caller has no such training."""


class ModelNotFound(NotFound, reason="MODEL_NOT_FOUND"):
    """The caller has no such model, or the model no such version."""


class UserNotFound(NotFound, reason="USER_NOT_FOUND"):
    """There is no such user."""


class RoundNotFound(NotFound, reason="ROUND_NOT_FOUND"):
    """The training has no such round."""


class InvalidArgument(FedroundError, code=grpc.StatusCode.INVALID_ARGUMENT):
    """The request itself is wrong; sending it again will not help."""


class FieldInvalid(InvalidArgument, reason="FIELD_INVALID"):
    """A field is missing, malformed or out of its range; field_violations names it."""


class UnknownClients(InvalidArgument, reason="UNKNOWN_CLIENTS"):
    """Some of the client ids are no users; nothing was changed."""


class ModelFormat(InvalidArgument, reason="MODEL_FORMAT"):
    """The file is not safetensors as the server takes it; `fedround convert` makes it from a .pt file."""


class UpdateMismatch(InvalidArgument, reason="UPDATE_MISMATCH"):
    """Names, shapes or dtypes of the update differ from the model's."""


class UpdateNotFinite(InvalidArgument, reason="UPDATE_NOT_FINITE"):
    """The update has NaN or infinity in it."""


class NumExamples(InvalidArgument, reason="NUM_EXAMPLES"):
    """The number of examples is out of the training's bounds."""


class FailedPrecondition(FedroundError, code=grpc.StatusCode.FAILED_PRECONDITION):
    """The state that something is in does not allow this now."""


class NoParticipants(FailedPrecondition, reason="NO_PARTICIPANTS"):
    """The training has nobody to train it."""


class TrainingNotInitial(FailedPrecondition, reason="TRAINING_NOT_INITIAL"):
    """The training was started already."""


class TrainingRunning(FailedPrecondition, reason="TRAINING_RUNNING"):
    """The training runs, or the user steers one that does; removing it needs force."""


class TrainingEnded(FailedPrecondition, reason="TRAINING_ENDED"):
    """The training is over."""


class LastParticipant(FailedPrecondition, reason="LAST_PARTICIPANT"):
    """A running training keeps at least one participant."""


class RoundNotOpen(FailedPrecondition, reason="ROUND_NOT_OPEN"):
    """The round was closed already, or has not begun."""


class ModelInUse(FailedPrecondition, reason="MODEL_IN_USE"):
    """A training that is not over needs the model."""


class ArchitectureUnknown(FailedPrecondition, reason="ARCHITECTURE_UNKNOWN"):
    """The operator registered no architecture for the model."""


class PosteriorMissing(FailedPrecondition, reason="POSTERIOR_MISSING"):
    """The version has no SWAG posterior."""


class PredictionFailed(FailedPrecondition, reason="PREDICTION_FAILED"):
    """Model, architecture and method do not fit together."""


class LastAdmin(FailedPrecondition, reason="LAST_ADMIN"):
    """The server keeps at least one admin."""


class UploadOffset(FailedPrecondition, reason="UPLOAD_OFFSET"):
    """The upload stands at another offset."""


class AlreadyExists(FedroundError, code=grpc.StatusCode.ALREADY_EXISTS):
    """Something else is there under that name."""


class UpdateExists(AlreadyExists, reason="UPDATE_EXISTS"):
    """The caller gave another update to the round already."""


class MetricsExist(AlreadyExists, reason="METRICS_EXIST"):
    """The caller gave another report to the round already."""


class UserExists(AlreadyExists, reason="USER_EXISTS"):
    """The name is taken."""


class DataLoss(FedroundError, code=grpc.StatusCode.DATA_LOSS):
    """Bytes were lost or damaged on the way."""


class UploadIncomplete(DataLoss, reason="UPLOAD_INCOMPLETE"):
    """The stream ended before the declared size."""


class DigestMismatch(DataLoss, reason="DIGEST_MISMATCH"):
    """The bytes do not have the declared SHA-256."""


class ResourceExhausted(FedroundError, code=grpc.StatusCode.RESOURCE_EXHAUSTED):
    """A limit of the server is reached."""


class ModelTooLarge(ResourceExhausted, reason="MODEL_TOO_LARGE"):
    """The model file is larger than the server takes."""


class Quota(ResourceExhausted, reason="QUOTA"):
    """The caller's quota is used up."""


class PredictionLimit(ResourceExhausted, reason="PREDICTION_LIMIT"):
    """The prediction takes more than the operator allows, or too many wait."""


class TooManyUploads(ResourceExhausted, reason="TOO_MANY_UPLOADS"):
    """The caller has too many uploads under way."""


class TooManyStreams(ResourceExhausted, reason="TOO_MANY_STREAMS"):
    """The caller has too many subscriptions or downloads open."""


class AnswerTooLarge(ResourceExhausted, reason="ANSWER_TOO_LARGE"):
    """The answer does not fit into a message; what the call changed stands."""


class OutOfRange(FedroundError, code=grpc.StatusCode.OUT_OF_RANGE):
    """A position lies outside of what there is."""


class CursorExpired(OutOfRange, reason="CURSOR_EXPIRED"):
    """The training's log does not reach the sequence to resume after."""


class OffsetOutOfRange(OutOfRange, reason="OFFSET_OUT_OF_RANGE"):
    """The file ends before the offset."""


class Unimplemented(FedroundError, code=grpc.StatusCode.UNIMPLEMENTED):
    """One of the two sides is too old for this."""


class UnsupportedRound(Unimplemented, reason="UNSUPPORTED_ROUND"):
    """A round asks for something that this participant cannot do."""


class DeadlineExceeded(FedroundError, code=grpc.StatusCode.DEADLINE_EXCEEDED):
    """The server did not answer in time."""


class ServerUnavailable(FedroundError, code=grpc.StatusCode.UNAVAILABLE):
    """The server cannot be reached."""


class StoreUnavailable(ServerUnavailable, reason="STORE_UNAVAILABLE"):
    """The server's database does not answer."""


class Aborted(FedroundError, code=grpc.StatusCode.ABORTED):
    """What was under way has ended without a result."""


class UploadSuperseded(Aborted, reason="UPLOAD_SUPERSEDED"):
    """A later try of the same upload took over."""


class TrainingFailed(Aborted):
    """The training ended in ERROR; the reason and the message are the training's own."""


class TrainingRemoved(Aborted, reason="TRAINING_REMOVED"):
    """The training was removed while somebody took part in it or waited for it."""


class RemovedFromTraining(Aborted, reason="CLIENT_REMOVED"):
    """The caller was removed from the training that it took part in."""


def from_rpc_error(error: grpc.RpcError, address: str) -> FedroundError:
    """Makes the typed exception of a failed call.

    Args:
        error: What grpc raised; also a call.
        address: The server's address, for the text of errors that the server itself could not word.

    Returns:
        The class of the reason if the status has an ErrorInfo of ours, else the class of the code.
    """
    code, message = error.code(), error.details() or ""
    info, violations = _details(error)
    if info is not None:
        kind = FedroundError._by_reason.get(info.reason) or FedroundError._by_code.get(code, FedroundError)
        return kind(code, info.reason, message, dict(info.metadata), violations)
    if code is grpc.StatusCode.UNAVAILABLE:
        plain = " If it speaks no TLS: --insecure, or insecure=True." if "handshake" in message.lower() else ""
        message = f"The server at {address} cannot be reached ({message}). Is `fedround serve` running there?{plain}"
    kind = FedroundError._by_code.get(code, FedroundError)
    return kind(code, code.name, message or "The server gave no explanation.", None, violations)


def _details(error: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo | None, dict[str, str]]:
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # details that contradict the status they came with: a proxy's, not ours
        status = None
    found: error_details_pb2.ErrorInfo | None = None
    violations: dict[str, str] = {}
    for detail in status.details if status is not None else ():
        info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info) and info.domain == DOMAIN:
            found = info
        elif detail.Unpack(request):
            violations |= {violation.field: violation.description for violation in request.field_violations}
    return found, violations


def from_event(event: Event) -> FedroundError | None:
    """Makes the exception that an event means for whoever waits for the training; None if it goes on or is finished."""
    kind = event.WhichOneof("payload")
    if kind == "training_failed":
        failed = event.training_failed
        return TrainingFailed(
            grpc.StatusCode.ABORTED, failed.reason, failed.message, {"training_id": event.training_id}
        )
    if kind == "training_removed":
        message = f"Training {event.training_id} was removed."
        return TrainingRemoved(grpc.StatusCode.ABORTED, "TRAINING_REMOVED", message, {"training_id": event.training_id})
    return None
