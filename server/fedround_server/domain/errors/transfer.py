"""RejectedUpdates about files on their way."""

from fedround_server.domain.errors.family import Aborted, DataLoss, FailedPrecondition, OutOfRange, ResourceExhausted


class UploadOffset(FailedPrecondition):
    """An upload is resumed at another offset than where it stands."""

    reason = "UPLOAD_OFFSET"

    def __init__(self, offset: int, committed_size: int) -> None:
        super().__init__(
            f"offset: the upload stands at {committed_size} bytes, not at {offset}: ask GetUpload and go on there",
            committed_size=str(committed_size),
        )


class UploadSuperseded(Aborted):
    """A later try of the same upload took over."""

    reason = "UPLOAD_SUPERSEDED"

    def __init__(self, upload_id: str) -> None:
        super().__init__(f"a later try of the upload {upload_id} took over: leave the file to that one")


class UploadIncomplete(DataLoss):
    """The stream ended before the end of the file."""

    reason = "UPLOAD_INCOMPLETE"

    def __init__(self, received: int, expected: int | None) -> None:
        of = f" of {expected}" if expected is not None else ""
        super().__init__(
            f"the stream ended after {received}{of} bytes of the file: send it again, or resume it by upload_id",
            received=str(received),
        )


class ChunkCorrupt(DataLoss):
    """A chunk does not have the checksum that it was sent with."""

    reason = "CHUNK_CORRUPT"

    def __init__(self, offset: int, size: int) -> None:
        super().__init__(
            f"the {size} bytes from offset {offset} were damaged on the way, and none was kept: send them again,"
            " in a resumable upload from this offset",
            offset=str(offset),
        )


class DigestMismatch(DataLoss):
    """The bytes are not those that were declared."""

    reason = "DIGEST_MISMATCH"


class ModelTooLarge(ResourceExhausted):
    """The file is larger than the server takes."""

    reason = "MODEL_TOO_LARGE"


class TooManyUploads(ResourceExhausted):
    """Too many uploads at the same time."""

    reason = "TOO_MANY_UPLOADS"
    retry_seconds = 1.0


class TooManyStreams(ResourceExhausted):
    """Too many subscriptions or downloads at the same time."""

    reason = "TOO_MANY_STREAMS"
    retry_seconds = 1.0


class DiskFull(ResourceExhausted):
    """The server's disk has no room for this now."""

    reason = "DISK_FULL"
    retry_seconds = 10.0


class OffsetOutOfRange(OutOfRange):
    """A download cannot start at this offset."""

    reason = "OFFSET_OUT_OF_RANGE"
