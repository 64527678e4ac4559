"""References to files: plain data that means the same in every process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fedround_server.domain.model import BlobRef


@dataclass(frozen=True, slots=True)
class UploadRef:
    """A resumable upload. Upload ids of different users never collide."""

    user_id: str
    upload_id: str


@dataclass(frozen=True, slots=True)
class StagedRef:
    """A file that is lost with the server's process unless it is committed."""

    name: str


FileRef: TypeAlias = BlobRef | UploadRef | StagedRef
"""Any file of the store."""


@dataclass(frozen=True, slots=True)
class StagedBlob:
    """A finished file, forced to disk, that is ready to be committed: where it is, and what it contains."""

    file: UploadRef | StagedRef
    blob: BlobRef


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A complete file in memory, of at most 1 MiB, and the blob that it is to become.

    Attributes:
        blob: The blob.
        pieces: The bytes, as they came: to join them takes as long as to write them.
    """

    blob: BlobRef
    pieces: Sequence[bytes]

    @property
    def data(self) -> bytes:
        """All bytes."""
        return b"".join(self.pieces)
