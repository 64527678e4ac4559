"""Access to blobs in an object store, in any process."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from uuid import uuid4

from fedround_server.blobs.checksums import BlobDamaged, damaged
from fedround_server.blobs.files import LocalFiles
from fedround_server.blobs.objects.bucket import Bucket
from fedround_server.blobs.objects.cache import Cache
from fedround_server.blobs.objects.layout import (
    PART_BYTES,
    Part,
    blob_key,
    decode,
    first,
    list_key,
    size_of,
    upload_key,
)
from fedround_server.blobs.objects.patient import PatientBucket
from fedround_server.blobs.refs import FileRef, StagedRef, UploadRef
from fedround_server.blobs.writer import write_all
from fedround_server.domain.model import BlobRef
from fedround_server.host.folder import make_private

AHEAD = 3
"""How many parts of a file are read ahead."""
PROBE = "probe"
"""The key of an object that does not exist."""
FETCHES = 8
"""How many small files are fetched at the same time."""


class ObjectFiles(LocalFiles):
    """Files of an object store; `BlobFiles` describes the methods.

    Files that are being received or made are in the data directory, as `LocalFiles` has them. Blobs are copied into a
    cache, DATA_DIR/cache, when they are first needed, and each copy is compared with its SHA-256 then.
    """

    def __init__(
        self, root: Path, opener: Callable[[], Bucket], cache_bytes: int, part_bytes: int = PART_BYTES
    ) -> None:
        """Makes nothing.

        Args:
            root: The data directory.
            opener: Opens the bucket, in any process: it can be pickled.
            cache_bytes: How much the cache may take.
            part_bytes: Size of a part; another one than PART_BYTES is for tests.
        """
        super().__init__(root)
        self._arguments = (root, opener, cache_bytes, part_bytes)
        self._opener = opener
        self._fetched = root / "cache" / "tmp"
        self.part_bytes = part_bytes
        self.cache = Cache(root / "cache", cache_bytes)

    def __reduce__(self) -> tuple[Callable[..., "ObjectFiles"], tuple[object, ...]]:
        """Leaves out the open bucket, and so its credentials."""
        return type(self), self._arguments

    @cached_property
    def bucket(self) -> PatientBucket:
        """The bucket, which each process opens for itself."""
        return PatientBucket(self._opener())

    def local_path(self, ref: FileRef) -> Path:
        """Returns a local file; that of a blob is a copy.

        Raises:
            BlobDamaged: The blob is missing, or does not have the bytes that were stored.
            ObjectsUnavailable: The object store cannot be used.
        """
        if not isinstance(ref, BlobRef):
            return super().local_path(ref)
        return self.cache.find(ref.sha256) or self._fetch(ref)

    def prepare(self, blobs: Iterable[BlobRef]) -> None:
        """Copies small blobs into the cache, several at a time; asks the store even if there are none.

        Raises:
            ObjectsUnavailable: The object store cannot be used: what is made of the blobs could not be stored, either.
        """
        self.bucket.head(PROBE)
        small = [blob for blob in blobs if blob.size_bytes <= self.part_bytes and not self.cache.find(blob.sha256)]
        if len(small) > 1:
            with ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch") as pool:
                list(pool.map(self._prepare, small))

    def range(self, ref: FileRef, start: int, end: int) -> bytes:
        """Returns the bytes [start, end) of a file; of a blob that was not copied nothing else is read."""
        if isinstance(ref, StagedRef):
            return super().range(ref, start, end)
        if isinstance(ref, UploadRef):
            return b"".join(self._read(self.upload_parts(ref), start, end))
        if self.cache.find(ref.sha256) is not None:
            with suppress(FileNotFoundError), self.cache.path(ref.sha256).open("rb", buffering=0) as file:
                file.seek(start)
                return file.read(end - start)
        return b"".join(self._read(self._parts(ref), start, end))

    def upload_parts(self, ref: UploadRef) -> list[Part]:
        """Returns the parts of an upload that is not finished.

        Raises:
            FileNotFoundError: There is no such upload.
        """
        return decode(self.bucket.get(upload_key(ref)))

    def read(self, parts: Sequence[Part]) -> Iterator[bytes]:
        """Yields the bytes of a file of parts, read ahead, a part at a time.

        Raises:
            FileNotFoundError: A part is missing.
        """
        return self._read(parts, 0, size_of(parts))

    def stored_size(self, sha256: str) -> int | None:
        """Returns the size of a blob of parts by their list; None if there is none that can be read."""
        try:
            return size_of(decode(self.bucket.get(list_key(sha256))))
        except (FileNotFoundError, ValueError):
            return None

    def has(self, blob: BlobRef) -> bool:
        """Returns whether a blob is stored with its size."""
        if blob.size_bytes > self.part_bytes:
            return self.stored_size(blob.sha256) == blob.size_bytes
        found = self.bucket.head(blob_key(blob.sha256))
        return found is not None and found.size_bytes == blob.size_bytes

    def fetch(self, blob: BlobRef) -> Path:
        """Copies a blob into the cache, although it may be there.

        Raises:
            BlobDamaged: It is missing, or does not have the bytes that were stored.
        """
        self.cache.drop(blob.sha256)
        return self._fetch(blob)

    def new_copy(self) -> Path:
        """Returns where to write what is to be added to the cache."""
        make_private(self._fetched)
        return self._fetched / str(uuid4())

    def unfinished_copies(self) -> list[Path]:
        """Returns the files of `new_copy` that processes which have ended may have left."""
        return list(self._fetched.iterdir()) if self._fetched.is_dir() else []

    def _prepare(self, blob: BlobRef) -> None:
        # Whoever needs it gets the error.
        with suppress(BlobDamaged):
            self.local_path(blob)

    def _fetch(self, blob: BlobRef) -> Path:
        with self.cache.locked(blob.sha256):
            found = self.cache.find(blob.sha256)
            if found is not None:
                return found
            try:
                return self._copy(blob)
            except BlobDamaged:
                # The answer may have been damaged, or the list of parts replaced since it was read.
                return self._copy(blob)

    def _copy(self, blob: BlobRef) -> Path:
        target = self.new_copy()
        try:
            with self.cache.making_room():
                self._download(blob, target)
            return self.cache.add(target, blob.sha256)
        finally:
            target.unlink(missing_ok=True)

    def _download(self, blob: BlobRef, target: Path) -> None:
        path = self.cache.path(blob.sha256)
        digest, size = hashlib.sha256(), 0
        descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o400)
        try:
            for data in self._whole(blob):
                write_all(descriptor, data)
                digest.update(data)
                size += len(data)
        except FileNotFoundError:
            raise damaged(blob, path, "is missing") from None
        finally:
            os.close(descriptor)
        if size != blob.size_bytes:
            raise damaged(blob, path, f"has {size} bytes instead of {blob.size_bytes}")
        if digest.hexdigest() != blob.sha256:
            raise damaged(blob, path, f"is damaged: its SHA-256 is {digest.hexdigest()}")

    def _whole(self, blob: BlobRef) -> Iterator[bytes]:
        if blob.size_bytes <= self.part_bytes:
            yield self.bucket.get(blob_key(blob.sha256))
        else:
            yield from self.read(self._parts(blob))

    def _parts(self, blob: BlobRef) -> list[Part]:
        """Returns the parts of a blob.

        Raises:
            FileNotFoundError: It is missing, or its list is damaged.
        """
        if blob.size_bytes <= self.part_bytes:
            return [Part(blob_key(blob.sha256), blob.size_bytes)]
        try:
            return decode(self.bucket.get(list_key(blob.sha256)))
        except ValueError:
            raise FileNotFoundError(list_key(blob.sha256)) from None

    def _read(self, parts: Sequence[Part], start: int, end: int) -> Iterator[bytes]:
        """Yields the bytes [start, end) of a file of parts, fewer if it ends before, or if a part is cut."""
        wanted: list[tuple[str, int, int]] = []
        position = 0
        for part in first(parts, end):
            begin = max(0, start - position)
            if begin < part.size_bytes:
                wanted.append((part.key, begin, part.size_bytes))
            position += part.size_bytes
        for data, (_, begin, stop) in zip(self._ahead(wanted), wanted, strict=True):
            yield data
            if len(data) < stop - begin:
                return

    def _ahead(self, wanted: Sequence[tuple[str, int, int]]) -> Iterator[bytes]:
        """Yields parts of objects, some of which are read ahead."""
        if len(wanted) < 2:
            yield from (self.bucket.get(*one) for one in wanted)
            return
        with ThreadPoolExecutor(AHEAD, thread_name_prefix="fetch") as pool:
            reading: deque[Future[bytes]] = deque()
            try:
                for one in wanted:
                    reading.append(pool.submit(self.bucket.get, *one))
                    if len(reading) > AHEAD:
                        yield reading.popleft().result()
                while reading:
                    yield reading.popleft().result()
            finally:
                for future in reading:
                    future.cancel()
