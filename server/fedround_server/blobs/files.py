"""Where the files of a local blob store are."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from fedround_server.blobs.refs import FileRef, StagedRef, UploadRef
from fedround_server.domain.model import BlobRef


class LocalFiles:
    """A folder of blobs: objects/AA/SHA256.

    It also has uploads/USER/UPLOAD (resumable uploads), tmp/NAME (staged files) and journal/NAME (small blobs that may
    not be on disk yet).
    """

    def __init__(self, root: Path) -> None:
        """Makes nothing: the folders are those of a `LocalBlobs`, perhaps of another process."""
        self.objects = root / "objects"
        self.uploads = root / "uploads"
        self.tmp = root / "tmp"
        self.journal = root / "journal"

    def local_path(self, ref: FileRef) -> Path:
        """Returns where a file is, or would be."""
        if isinstance(ref, UploadRef):
            return self.uploads / ref.user_id / ref.upload_id
        if isinstance(ref, StagedRef):
            return self.tmp / ref.name
        return self.blob_path(ref.sha256)

    def blob_path(self, sha256: str) -> Path:
        """Returns where a blob is, or would be."""
        return self.objects / sha256[:2] / sha256

    def prepare(self, blobs: Iterable[BlobRef]) -> None:
        """Does nothing: all files are here."""

    def range(self, ref: FileRef, start: int, end: int) -> bytes:
        """Returns the bytes [start, end) of a file."""
        with self.local_path(ref).open("rb", buffering=0) as file:
            file.seek(start)
            return file.read(end - start)

    @contextmanager
    def stage(self) -> Iterator[tuple[StagedRef, Path]]:
        """Yields the reference and the path of a new staged file.

        Its name is new for each attempt at a job: a process that died may have left a part, which the next start of the
        server sweeps.
        """
        ref = StagedRef(str(uuid4()))
        path = self.local_path(ref)
        try:
            yield ref, path
        except BaseException:
            path.unlink(missing_ok=True)
            raise
