"""Uploads into an object store that are being received."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from fedround_server.blobs.objects.layout import Part, size_of
from fedround_server.blobs.objects.parts import PartUploader
from fedround_server.blobs.refs import UploadRef
from fedround_server.blobs.writer import LocalWriter
from fedround_server.domain.errors import ObjectsUnavailable, UploadOffset


class Records(Protocol):
    """What a writer needs of its store."""

    def forget_upload(self, ref: UploadRef) -> None:
        """Removes an upload, if this process knows that it exists."""

    def ended(self, ref: UploadRef) -> None:
        """Forgets the writer of an upload."""


class ObjectWriter(LocalWriter):
    """An upload that is being received; `BlobWriter` describes the methods.

    It is written to a local file, whose parts are put into the bucket meanwhile. What is not put yet when the block is
    left early is put then, so that another server can go on.
    """

    def __init__(
        self,
        store: Records,
        ref: UploadRef,
        path: Path,
        uploader: PartUploader,
        read: Callable[[Sequence[Part]], Iterator[bytes]],
        part_bytes: int,
    ) -> None:
        """Begins a local file anew: what an earlier attempt left is in the bucket."""
        super().__init__(ref, path)
        self.upload = ref
        self.uploader = uploader
        self.is_committed = False
        self._store = store
        self._read = read
        self._part_bytes = part_bytes
        self._offset = size_of(uploader.parts)
        self._is_failed = False

    def __exit__(self, *_: object) -> None:
        """Closes and removes the local file; the upload stays, unless it is empty or was discarded."""
        try:
            if not self._keep or not (self.size_bytes or self._offset):
                self.uploader.abandon()
                # A later attempt finds that it is wrong, if it cannot be removed now.
                with suppress(ObjectsUnavailable):
                    self._store.forget_upload(self.upload)
            elif self.is_committed or self._is_failed or self.size_bytes < self._offset:
                self.uploader.abandon()
            else:
                self._put_rest()
        finally:
            self._keep = False
            self._store.ended(self.upload)
            super().__exit__()

    def replay(self, see: Callable[[bytes], None]) -> None:
        """Reads what earlier attempts have put, writes and hashes it, and passes it to `see`.

        Raises:
            UploadOffset: A part is missing or cut: the upload has to begin anew.
        """
        try:
            for data in self._read(self.uploader.parts):
                super().write(data)
                see(data)
        except FileNotFoundError:
            pass
        if self.size_bytes != self._offset:
            self.discard()
            raise UploadOffset(self._offset, 0)

    def write(self, data: bytes, crc32c: int | None = None) -> None:
        """Appends data, and puts the parts that are complete; what is smaller than a part is put by the commit."""
        super().write(data, crc32c)
        if self.size_bytes > self._part_bytes:
            with self._failing():
                self.uploader.advance(self.size_bytes)

    def sync(self) -> None:
        """Puts all parts, unless the file will be one object."""
        if self.size_bytes > self._part_bytes:
            with self._failing():
                self.uploader.finish(self.size_bytes)

    def _put_rest(self) -> None:
        try:
            self.uploader.finish(self.size_bytes)
        except ObjectsUnavailable:
            # The next attempt begins earlier.
            self.uploader.abandon()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Has leaving the writer's block put nothing more if this block fails."""
        try:
            yield
        except BaseException:
            self._is_failed = True
            raise
