"""One class a reason, below the class of its status code."""

from fedround_client.errors.family import (
    Aborted,
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    ServerUnavailable,
    Unauthenticated,
    Unimplemented,
)


class TokenMissing(Unauthenticated, reason="TOKEN_MISSING"):
    """The call carried no token."""


class TokenInvalid(Unauthenticated, reason="TOKEN_INVALID"):
    """The token is unknown, or was revoked."""


class TokenExpired(Unauthenticated, reason="TOKEN_EXPIRED"):
    """The token was good once."""


class TokenNotFound(NotFound, reason="TOKEN_NOT_FOUND"):
    """The user has no such token."""


class CertificateMismatch(Unauthenticated, reason="CERTIFICATE_MISMATCH"):
    """The client certificate and the token are of different users."""


class CertificateAmbiguous(Unauthenticated, reason="CERTIFICATE_AMBIGUOUS"):
    """The client certificate names several users."""


class CertificateNameTaken(AlreadyExists, reason="CERTIFICATE_NAME_TAKEN"):
    """The certificate name is another user's."""


class RoleRequired(PermissionDenied, reason="ROLE_REQUIRED"):
    """The caller's role does not allow this call."""


class NotActor(PermissionDenied, reason="NOT_ACTOR"):
    """Only the training's actor may do this."""


class NotInCohort(PermissionDenied, reason="NOT_IN_COHORT"):
    """The caller does not take part in the round."""


class TrainingNotFound(NotFound, reason="TRAINING_NOT_FOUND"):
    """The caller has no such training."""


class ModelNotFound(NotFound, reason="MODEL_NOT_FOUND"):
    """The caller has no such model, or the model no such version."""


class UserNotFound(NotFound, reason="USER_NOT_FOUND"):
    """There is no such user."""


class RoundNotFound(NotFound, reason="ROUND_NOT_FOUND"):
    """The training has no such round."""


class FieldInvalid(InvalidArgument, reason="FIELD_INVALID"):
    """A field is missing, malformed or out of its range; field_violations names it."""


class UnknownClients(InvalidArgument, reason="UNKNOWN_CLIENTS"):
    """Some of the client ids are no users; nothing was changed."""


class ModelFormat(InvalidArgument, reason="MODEL_FORMAT"):
    """The file is not safetensors as the server takes it; `fedround convert` makes it from a .pt file."""


class UpdateMismatch(InvalidArgument, reason="UPDATE_MISMATCH"):
    """Names, shapes or dtypes of the update differ from the model's."""


class UpdateNorm(InvalidArgument, reason="UPDATE_NORM"):
    """The update is farther from the model that it started from than the training allows."""


class UpdateNotFinite(InvalidArgument, reason="UPDATE_NOT_FINITE"):
    """The update has NaN or infinity in it."""


class NumExamples(InvalidArgument, reason="NUM_EXAMPLES"):
    """The number of examples is out of the training's bounds."""


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


class UpdateExists(AlreadyExists, reason="UPDATE_EXISTS"):
    """The caller gave another update to the round already."""


class MetricsExist(AlreadyExists, reason="METRICS_EXIST"):
    """The caller gave another report to the round already."""


class UserExists(AlreadyExists, reason="USER_EXISTS"):
    """The name is taken."""


class UploadIncomplete(DataLoss, reason="UPLOAD_INCOMPLETE"):
    """The stream ended before the declared size."""


class ChunkCorrupt(DataLoss, reason="CHUNK_CORRUPT"):
    """A chunk was damaged on the way; what came before it is good."""


class DigestMismatch(DataLoss, reason="DIGEST_MISMATCH"):
    """The bytes do not have the declared SHA-256."""


class ModelTooLarge(ResourceExhausted, reason="MODEL_TOO_LARGE"):
    """The model file is larger than the server takes."""


class Quota(ResourceExhausted, reason="QUOTA"):
    """The caller's quota is used up."""


class PredictionLimit(ResourceExhausted, reason="PREDICTION_LIMIT"):
    """The prediction takes more than the operator allows, or too many wait."""


class TooManyCalls(ResourceExhausted, reason="TOO_MANY_CALLS"):
    """The caller calls too often; nothing was done."""


class TooManyUploads(ResourceExhausted, reason="TOO_MANY_UPLOADS"):
    """The caller has too many uploads under way."""


class TooManyStreams(ResourceExhausted, reason="TOO_MANY_STREAMS"):
    """The caller has too many subscriptions or downloads open."""


class DiskFull(ResourceExhausted, reason="DISK_FULL"):
    """The server's disk has no room for this now."""


class AnswerTooLarge(ResourceExhausted, reason="ANSWER_TOO_LARGE"):
    """The answer does not fit into a message; what the call changed stands."""


class CursorExpired(OutOfRange, reason="CURSOR_EXPIRED"):
    """The training's log does not reach the sequence to resume after."""


class OffsetOutOfRange(OutOfRange, reason="OFFSET_OUT_OF_RANGE"):
    """The file ends before the offset."""


class UnsupportedRound(Unimplemented, reason="UNSUPPORTED_ROUND"):
    """A round asks for something that this participant cannot do."""


class ServerLeaving(ServerUnavailable, reason="SERVER_LEAVING"):
    """The server is going down, and begins nothing any more."""


class WorkerKilled(ServerUnavailable, reason="WORKER_KILLED"):
    """The server's worker process was killed from outside, again and again; the call may be tried again."""


class StoreUnavailable(ServerUnavailable, reason="STORE_UNAVAILABLE"):
    """The server's database does not answer."""


class UploadSuperseded(Aborted, reason="UPLOAD_SUPERSEDED"):
    """A later try of the same upload took over."""


class TrainingFailed(Aborted):
    """The training ended in ERROR; the reason and the message are the training's own."""


class TrainingRemoved(Aborted, reason="TRAINING_REMOVED"):
    """The training was removed while somebody took part in it or waited for it."""


class RemovedFromTraining(Aborted, reason="CLIENT_REMOVED"):
    """The caller was removed from the training that it took part in."""
