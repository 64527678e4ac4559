"""Files of tests as engines get at them: each reference has a path in place of a digest."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from fedround_server.blobs import BlockChecksums, FileRef, StagedRef
from fedround_server.domain.model import BlobRef


def at(path: Path) -> BlobRef:
    data, checksums = path.read_bytes() if path.is_file() else b"", BlockChecksums()
    checksums.update(data)
    return BlobRef(str(path), len(data), checksums.digest())


@dataclass(frozen=True)
class Paths:
    """New files are made in a folder."""

    folder: Path

    def local_path(self, ref: FileRef) -> Path:
        return Path(ref.sha256) if isinstance(ref, BlobRef) else self.folder / getattr(ref, "name", "")

    def prepare(self, blobs: Iterable[BlobRef]) -> None:
        """All files are here."""

    def range(self, ref: FileRef, start: int, end: int) -> bytes:
        return self.local_path(ref).read_bytes()[start:end]

    @contextmanager
    def stage(self) -> Iterator[tuple[StagedRef, Path]]:
        ref = StagedRef(f"staged {uuid4()}")
        try:
            yield ref, self.local_path(ref)
        except BaseException:
            self.local_path(ref).unlink(missing_ok=True)
            raise
