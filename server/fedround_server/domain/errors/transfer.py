"""Errors about uploads, downloads and subscriptions."""

from fedround_server.domain.errors.family import Aborted, DataLoss, FailedPrecondition, OutOfRange, ResourceExhausted


class BackupInProgress(FailedPrecondition):
    """Files cannot be collected while a backup is made: it may need them."""

    reason = "BACKUP_IN_PROGRESS"
    remedy = "call it again when the backup is complete"

    def __init__(self) -> None:
        super().__init__(
            "a backup of the server is being made, which may need the files: try again when it is complete"
        )


class UploadIncomplete(DataLoss):
    """The stream ended before the end of the file."""

    reason = "UPLOAD_INCOMPLETE"
    remedy = "send the file again, or resume the upload by `upload_id`"

    def __init__(self, received: int, expected: int | None) -> None:
        of = f" of {expected}" if expected is not None else ""
        super().__init__(
            f"the stream ended after {received}{of} bytes of the file: send it again, or resume it by upload_id",
            received=str(received),
        )


class ChunkCorrupt(DataLoss):
    """A chunk does not have the checksum that it was sent with; the bytes before it were kept."""

    reason = "CHUNK_CORRUPT"
    remedy = "resume the upload at the offset in the metadata; the SDK does"

    def __init__(self, offset: int, size: int) -> None:
        super().__init__(
            f"the {size} bytes at offset {offset} were damaged in transit, and were dropped: send them again,"
            " in a resumable upload from this offset",
            offset=str(offset),
        )


class DigestMismatch(DataLoss):
    """The file does not have the declared SHA-256."""

    reason = "DIGEST_MISMATCH"
    remedy = "compute the digest of what is sent, and send it again"


class UploadOffset(FailedPrecondition):
    """The upload is resumed at an offset where it does not stand."""

    reason = "UPLOAD_OFFSET"
    remedy = "ask GetUpload, and resume at the offset that it returns"

    def __init__(self, offset: int, committed_size: int) -> None:
        super().__init__(
            f"offset: the upload stands at {committed_size} bytes, not at {offset}: ask GetUpload and resume there",
            committed_size=str(committed_size),
        )


class UploadSuperseded(Aborted):
    """A later call with the same `upload_id` took over the upload."""

    reason = "UPLOAD_SUPERSEDED"
    remedy = "leave the upload to that call"

    def __init__(self, upload_id: str) -> None:
        super().__init__(f"a later call took over the upload {upload_id}: leave it to that call")


class OffsetOutOfRange(OutOfRange):
    """A download starts behind the end of the file."""

    reason = "OFFSET_OUT_OF_RANGE"
    remedy = "start within the size that GetModel returns"


class ModelTooLarge(ResourceExhausted):
    """The file is larger than the server accepts."""

    reason = "MODEL_TOO_LARGE"
    remedy = "ask the operator to raise the limit"


class TooManyUploads(ResourceExhausted):
    """Too many uploads are in progress, or have too many bytes."""

    reason = "TOO_MANY_UPLOADS"
    remedy = "wait as long as RetryInfo says, or longer"
    retry_seconds = 1.0


class TooManyStreams(ResourceExhausted):
    """The user has too many subscriptions, or too many downloads, in progress."""

    reason = "TOO_MANY_STREAMS"
    remedy = "end some, or wait as long as RetryInfo says, or longer"
    retry_seconds = 1.0


class DiskFull(ResourceExhausted):
    """The server's disk is full, or almost full: updates of running rounds are accepted longer than new models."""

    reason = "DISK_FULL"
    remedy = "wait as long as RetryInfo says; the SDK does; the operator makes room"
    retry_seconds = 10.0
