"""One exception per reason of the server, below that of its status code. Written by `make errors`."""

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
)

__all__ = [
    "AccountingMissing",
    "AggregationIncompatible",
    "AlreadyParticipating",
    "AnswerTooLarge",
    "ArchitectureUnknown",
    "BackupInProgress",
    "CertificateAmbiguous",
    "CertificateMismatch",
    "CertificateNameTaken",
    "ChunkCorrupt",
    "CohortImpossible",
    "CursorExpired",
    "DigestMismatch",
    "DiskFull",
    "FieldInvalid",
    "LastAdmin",
    "LastParticipant",
    "MessageInvalid",
    "MetricsExist",
    "ModelDamaged",
    "ModelFormat",
    "ModelInUse",
    "ModelNotFound",
    "ModelTooLarge",
    "NoParticipants",
    "NotActor",
    "NotInCohort",
    "NumExamples",
    "ObjectsUnavailable",
    "OffsetOutOfRange",
    "PosteriorMissing",
    "PredictionFailed",
    "PredictionLimit",
    "Quota",
    "ReplayImpossible",
    "RoleRequired",
    "RoundNotFound",
    "RoundNotOpen",
    "ServerLeaving",
    "ServerOverloaded",
    "StoreUnavailable",
    "TensorsMismatch",
    "TokenExpired",
    "TokenInvalid",
    "TokenMissing",
    "TokenNotFound",
    "TooManyCalls",
    "TooManyStreams",
    "TooManyUploads",
    "TrainingEnded",
    "TrainingNotFound",
    "TrainingNotInitial",
    "TrainingNotPaused",
    "TrainingNotRunning",
    "TrainingPaused",
    "TrainingRunning",
    "UnknownClients",
    "UpdateExists",
    "UpdateMismatch",
    "UpdateNorm",
    "UpdateNotFinite",
    "UpdateStale",
    "UpdateSuperseded",
    "UploadIncomplete",
    "UploadOffset",
    "UploadSuperseded",
    "UserExists",
    "UserNotFound",
    "WorkerKilled",
]


class TokenMissing(Unauthenticated, reason="TOKEN_MISSING"):
    """The call carries no token."""


class TokenInvalid(Unauthenticated, reason="TOKEN_INVALID"):
    """The token is malformed, unknown or revoked."""


class TokenExpired(Unauthenticated, reason="TOKEN_EXPIRED"):
    """The token has expired; only a caller that sends the whole token learns this."""


class CertificateMismatch(Unauthenticated, reason="CERTIFICATE_MISMATCH"):
    """The token and the client certificate belong to different users."""


class CertificateAmbiguous(Unauthenticated, reason="CERTIFICATE_AMBIGUOUS"):
    """The client certificate names several users."""


class RoleRequired(PermissionDenied, reason="ROLE_REQUIRED"):
    """The caller's role does not include the call."""


class UserNotFound(NotFound, reason="USER_NOT_FOUND"):
    """The user does not exist, or the caller may not see it."""


class TokenNotFound(NotFound, reason="TOKEN_NOT_FOUND"):
    """The user has no such token."""


class UserExists(AlreadyExists, reason="USER_EXISTS"):
    """Another user has the name."""


class CertificateNameTaken(AlreadyExists, reason="CERTIFICATE_NAME_TAKEN"):
    """Another user has the certificate name."""


class LastAdmin(FailedPrecondition, reason="LAST_ADMIN"):
    """The server keeps at least one admin."""


class FieldInvalid(InvalidArgument, reason="FIELD_INVALID"):
    """A field is missing, malformed, out of range, or does not go with another one."""


class MessageInvalid(InvalidArgument, reason="MESSAGE_INVALID"):
    """A message cannot be decoded, or the only message of a call is missing."""


class Quota(ResourceExhausted, reason="QUOTA"):
    """The user, or the server, has as many open trainings, stored bytes or tags as are allowed."""


class TooManyCalls(ResourceExhausted, reason="TOO_MANY_CALLS"):
    """The rate of calls is too high: of the user, of all users, or of an address without a valid token."""


class AnswerTooLarge(ResourceExhausted, reason="ANSWER_TOO_LARGE"):
    """The response does not fit into a message of 2 MiB; the changes that the call made remain."""


class ServerLeaving(ServerUnavailable, reason="SERVER_LEAVING"):
    """The server is shutting down, and accepts no new uploads, downloads, predictions and starts of trainings."""


class ServerOverloaded(ServerUnavailable, reason="SERVER_OVERLOADED"):
    """Unauthenticated peers flood the server, which rejects calls without a token for the moment."""


class StoreUnavailable(ServerUnavailable, reason="STORE_UNAVAILABLE"):
    """The database does not answer, or is full."""


class ObjectsUnavailable(ServerUnavailable, reason="OBJECTS_UNAVAILABLE"):
    """The object store with the server's files does not answer, or does not allow what the server asks for."""


class WorkerKilled(ServerUnavailable, reason="WORKER_KILLED"):
    """The worker process was killed three times in a row, most likely because the machine is out of memory."""


class TrainingNotFound(NotFound, reason="TRAINING_NOT_FOUND"):
    """The training does not exist, or the caller has no part in it: one answer, so that ids cannot be probed."""


class NotActor(PermissionDenied, reason="NOT_ACTOR"):
    """Only the training's actor may do this."""


class AggregationIncompatible(InvalidArgument, reason="AGGREGATION_INCOMPATIBLE"):
    """Two stages of an aggregation, or an aggregation and another option or the model, do not go together."""


class AccountingMissing(FailedPrecondition, reason="ACCOUNTING_MISSING"):
    """The server cannot account for differential privacy: the package that computes epsilon is not installed."""


class UnknownClients(InvalidArgument, reason="UNKNOWN_CLIENTS"):
    """A list names users that do not exist; 20 of them are in the message and 60 in the metadata."""


class NoParticipants(FailedPrecondition, reason="NO_PARTICIPANTS"):
    """The training has no participants, or fewer than its rounds need."""


class CohortImpossible(FailedPrecondition, reason="COHORT_IMPOSSIBLE"):
    """Too few participants are registered for the training's cohort, or too few have its labels."""


class TrainingNotInitial(FailedPrecondition, reason="TRAINING_NOT_INITIAL"):
    """Only a training in the state INITIAL can be started; of several starts at once exactly one succeeds."""


class TrainingRunning(FailedPrecondition, reason="TRAINING_RUNNING"):
    """The training, or a training of the user to remove, is running, and `force` is not set."""


class TrainingEnded(FailedPrecondition, reason="TRAINING_ENDED"):
    """The training has ended."""


class TrainingNotRunning(FailedPrecondition, reason="TRAINING_NOT_RUNNING"):
    """The training has not been started, or has ended: it cannot be stopped, paused, resumed or changed."""


class TrainingPaused(FailedPrecondition, reason="TRAINING_PAUSED"):
    """The training is paused already."""


class TrainingNotPaused(FailedPrecondition, reason="TRAINING_NOT_PAUSED"):
    """The training is not paused, so it cannot be resumed."""


class LastParticipant(FailedPrecondition, reason="LAST_PARTICIPANT"):
    """A running training keeps at least one participant."""


class RoundNotFound(NotFound, reason="ROUND_NOT_FOUND"):
    """The training has no such round."""


class RoundNotOpen(FailedPrecondition, reason="ROUND_NOT_OPEN"):
    """The round does not accept this: it is closed, not open yet, or of another kind."""


class ReplayImpossible(FailedPrecondition, reason="REPLAY_IMPOSSIBLE"):
    """A round cannot be computed once more: it made no version, or a file that it needs is not stored any more."""


class NotInCohort(PermissionDenied, reason="NOT_IN_COHORT"):
    """The caller does not belong to the round's cohort."""


class TensorsMismatch(InvalidArgument, reason="TENSORS_MISMATCH"):
    """The names of the update's tensors are not those that the round asks for."""


class AlreadyParticipating(FailedPrecondition, reason="ALREADY_PARTICIPATING"):
    """Another program takes part as the same user, in the same training or in all of the user's trainings."""


class UpdateMismatch(InvalidArgument, reason="UPDATE_MISMATCH"):
    """The shapes or dtypes of the update's tensors are not those that the round asks for."""


class UpdateNotFinite(InvalidArgument, reason="UPDATE_NOT_FINITE"):
    """An update or a model contains NaN or infinity."""


class UpdateNorm(InvalidArgument, reason="UPDATE_NORM"):
    """The update is farther from the model that it started from than the training's `max_update_norm`."""


class NumExamples(InvalidArgument, reason="NUM_EXAMPLES"):
    """`num_examples` is out of range."""


class UpdateExists(AlreadyExists, reason="UPDATE_EXISTS"):
    """The participant has submitted another update in the round: another file, `num_examples` or metrics."""


class MetricsExist(AlreadyExists, reason="METRICS_EXIST"):
    """The participant has submitted other metrics in the round; the same ones are accepted again and count once."""


class UpdateSuperseded(FailedPrecondition, reason="UPDATE_SUPERSEDED"):
    """The update or report was accepted, and will not count: its participant was removed, or its round abandoned."""


class UpdateStale(FailedPrecondition, reason="UPDATE_STALE"):
    """Too many versions were made since the one that the update started from (`Aggregation.buffering`)."""


class CursorExpired(OutOfRange, reason="CURSOR_EXPIRED"):
    """A subscription cannot be resumed after this sequence: the log does not reach it, or no longer has it."""


class BackupInProgress(FailedPrecondition, reason="BACKUP_IN_PROGRESS"):
    """Files cannot be collected while a backup is made: it may need them."""


class UploadIncomplete(DataLoss, reason="UPLOAD_INCOMPLETE"):
    """The stream ended before the end of the file."""


class ChunkCorrupt(DataLoss, reason="CHUNK_CORRUPT"):
    """A chunk does not have the checksum that it was sent with; the bytes before it were kept."""


class DigestMismatch(DataLoss, reason="DIGEST_MISMATCH"):
    """The file does not have the declared SHA-256."""


class UploadOffset(FailedPrecondition, reason="UPLOAD_OFFSET"):
    """The upload is resumed at an offset where it does not stand."""


class UploadSuperseded(Aborted, reason="UPLOAD_SUPERSEDED"):
    """A later call with the same `upload_id` took over the upload."""


class OffsetOutOfRange(OutOfRange, reason="OFFSET_OUT_OF_RANGE"):
    """A download starts behind the end of the file."""


class ModelTooLarge(ResourceExhausted, reason="MODEL_TOO_LARGE"):
    """The file is larger than the server accepts."""


class TooManyUploads(ResourceExhausted, reason="TOO_MANY_UPLOADS"):
    """Too many uploads are in progress, or have too many bytes."""


class TooManyStreams(ResourceExhausted, reason="TOO_MANY_STREAMS"):
    """The user has too many subscriptions, or too many downloads, in progress."""


class DiskFull(ResourceExhausted, reason="DISK_FULL"):
    """The server's disk is full, or almost full: updates of running rounds are accepted longer than new models."""


class ModelNotFound(NotFound, reason="MODEL_NOT_FOUND"):
    """The model or its version does not exist, or the caller has no part in it."""


class ModelDamaged(DataLoss, reason="MODEL_DAMAGED"):
    """The server's file of a model is damaged or missing: no wrong byte of it was sent or used."""


class ModelFormat(InvalidArgument, reason="MODEL_FORMAT"):
    """The file is not an acceptable safetensors file; a pickle, for example."""


class ModelInUse(FailedPrecondition, reason="MODEL_IN_USE"):
    """A training that has not ended needs the model."""


class ArchitectureUnknown(FailedPrecondition, reason="ARCHITECTURE_UNKNOWN"):
    """The model names no architecture, or one that is not registered."""


class PosteriorMissing(FailedPrecondition, reason="POSTERIOR_MISSING"):
    """SWAG is asked for, and the version has no posterior."""


class PredictionFailed(FailedPrecondition, reason="PREDICTION_FAILED"):
    """Model, architecture and method do not fit together: weights of other shapes, no dropout, a factory that fails."""


class PredictionLimit(ResourceExhausted, reason="PREDICTION_LIMIT"):
    """A prediction takes more time or memory than the operator allows, or too many are waiting."""
