"""Blobs in an object store."""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from fedround_server.blobs.checksums import BlobDamaged, examine_file
from fedround_server.blobs.commits import Commits
from fedround_server.blobs.disk_full import explain
from fedround_server.blobs.local import BLOB_MODE, files_below, free_bytes, total_bytes
from fedround_server.blobs.objects.bucket import Bucket, Entry
from fedround_server.blobs.objects.cache import CachedReader
from fedround_server.blobs.objects.files import ObjectFiles
from fedround_server.blobs.objects.garbage import Garbage
from fedround_server.blobs.objects.layout import (
    LIST,
    OBJECTS,
    PART_BYTES,
    UPLOADS,
    Part,
    blob_key,
    digest_of,
    encode,
    first,
    list_key,
    marker_key,
    new_group,
    size_of,
    upload_key,
    upload_of,
)
from fedround_server.blobs.objects.parts import PartUploader
from fedround_server.blobs.objects.removal import Removals
from fedround_server.blobs.objects.writer import ObjectWriter
from fedround_server.blobs.protocol import UNREFERENCED_SECONDS
from fedround_server.blobs.reader import LocalReader
from fedround_server.blobs.refs import SmallFile, StagedBlob, StagedRef, UploadRef
from fedround_server.blobs.writer import LocalWriter, write_all
from fedround_server.domain.errors import ObjectsUnavailable, UploadOffset
from fedround_server.domain.model import BlobRef
from fedround_server.failpoints import reached
from fedround_server.host.folder import make_private

log = logging.getLogger(__name__)
LOCKS = 64
SMALL_PUTS, PART_PUTS, REMOVALS = 16, 4, 8
"""How many requests are made at the same time; each part that is being put takes its size of memory."""


class ObjectBlobs:
    """Blobs in an object store; `Blobs` describes the methods. Any thread may call it.

    `layout` says which objects there are. A blob is durable when the store has acknowledged its object, or the list of
    its parts, which is put last.
    """

    def __init__(
        self,
        root: Path,
        opener: Callable[[], Bucket],
        cache_bytes: int,
        part_bytes: int = PART_BYTES,
    ) -> None:
        """Makes the folders of the data directory, and opens the bucket without a request; see `ObjectFiles`.

        Raises:
            RuntimeError: The bucket cannot be opened.
        """
        self.files = ObjectFiles(root, opener, cache_bytes, part_bytes)
        for folder in (self.files.uploads, self.files.tmp):
            make_private(folder)
        self.stored_bytes = 0
        self._bucket = self.files.bucket
        self._garbage = Garbage(self._bucket)
        self._removals = Removals(self._bucket)
        self._commits = Commits()
        # With which commit a blob was put last, until it is decided about.
        self._put_as: dict[str, str] = {}
        # Of blobs that are being put or removed, by their digests.
        self._locks = [threading.Lock() for _ in range(LOCKS)]
        # Of what this process knows.
        self._state_lock = threading.Lock()
        self._writers: dict[UploadRef, ObjectWriter] = {}
        # The sizes of uploads, as far as this process knows.
        self._sizes: dict[UploadRef, int] = {}
        self._small_pool = ThreadPoolExecutor(SMALL_PUTS, thread_name_prefix="put small")
        self._part_pool = ThreadPoolExecutor(PART_PUTS, thread_name_prefix="put part")

    def writer(self, ref: UploadRef | StagedRef, offset: int = 0) -> LocalWriter:
        """Opens a new or a resumed upload."""
        path = self.files.local_path(ref)
        kept = self._parts(ref) if isinstance(ref, UploadRef) and offset else []
        if offset > size_of(kept):
            raise UploadOffset(offset, size_of(kept))
        if isinstance(ref, StagedRef):
            return LocalWriter(ref, path)
        kept = first(kept, offset)
        if kept:
            # What is behind the offset is dropped, and the upload counts as continued.
            self.record(ref, kept)
        uploader = PartUploader(
            self._bucket,
            self._part_pool,
            path,
            new_group(ref),
            self.files.part_bytes,
            kept,
            lambda parts: self.record(ref, parts),
        )
        writer = ObjectWriter(self, ref, path, uploader, self.files.read, self.files.part_bytes)
        self._writers[ref] = writer
        return writer

    def commit(self, staged: StagedBlob) -> None:
        """Makes a file a blob, durably: that of a writer whose block is not left, or one that an engine has staged."""
        source, ref = self.files.local_path(staged.file), staged.file
        try:
            if isinstance(ref, UploadRef):
                writer = self._writers[ref]
                self._publish_file(staged.blob, source, writer.uploader)
                writer.is_committed = True
            else:
                self._publish_file(staged.blob, source, self._uploader(ref, source))
            self._keep_copy(source, staged.blob)
        finally:
            if isinstance(ref, StagedRef):
                source.unlink(missing_ok=True)
        if isinstance(ref, UploadRef):
            # One that stays is collected, and the parts of the blob are not.
            with suppress(ObjectsUnavailable):
                self.forget_upload(ref)

    def store(self, files: Sequence[SmallFile]) -> Sequence[Exception | None]:
        """Makes blobs of small files, durably, several at a time."""
        if len(files) == 1:
            return [self._store(files[0])]
        return list(self._small_pool.map(self._store, files))

    def keep(self, blob: BlobRef) -> None:
        """Leaves a committed blob to the collection."""
        # Not with the lock of the blob, which others have while they wait for the store: no caller waits here.
        with self._state_lock:
            self._commits.keep(blob.sha256)
            self._forget_decided(blob.sha256)

    def release(self, blob: BlobRef) -> None:
        """Removes a committed blob, unless it was stored before or others committed it."""
        with self._lock_of(blob.sha256):
            with self._state_lock:
                is_last = self._commits.release(blob.sha256)
                commit = self._put_as.get(blob.sha256)
                self._forget_decided(blob.sha256)
            if is_last:
                self.files.cache.drop(blob.sha256)
                # Not if it cannot be now: the collection does it.
                with suppress(ObjectsUnavailable):
                    if self._removals.remove(blob.sha256, self._key(blob), lambda found: found.commit == commit):
                        self._count(-blob.size_bytes)

    def open(self, blob: BlobRef, offset: int) -> LocalReader:
        """Opens a blob for reading from an offset, in chunks; it is copied into the cache first."""
        try:
            return CachedReader(self.files.cache, self.files.local_path(blob), blob, offset)
        except BlobDamaged:
            # The copy was removed just now, or damaged.
            return CachedReader(self.files.cache, self.files.fetch(blob), blob, offset)

    def open_cached(self, blob: BlobRef, offset: int) -> LocalReader | None:
        """Opens a blob that is in the cache; otherwise returns None."""
        path = self.files.cache.find(blob.sha256)
        return None if path is None else CachedReader(self.files.cache, path, blob, offset)

    def examine(self, blob: BlobRef) -> BlobRef:
        """Reads all of a blob, and returns it with the checksums of its blocks."""
        return examine_file(self.files.fetch(blob), blob)

    def upload_size(self, ref: UploadRef) -> int:
        """Returns how many bytes of an upload are stored, by whichever server."""
        return size_of(self._parts(ref))

    def known_size(self, ref: UploadRef) -> int:
        """Returns how many bytes of an upload are stored, as far as this process knows."""
        return self._sizes.get(ref, 0)

    def unfinished_uploads(self) -> Iterator[tuple[UploadRef, int]]:
        """Yields all uploads with their sizes."""
        for entry in self._bucket.entries(UPLOADS):
            ref = upload_of(entry.key)
            if ref is not None and (size := self.upload_size(ref)):
                self._sizes[ref] = size
                yield ref, size

    def remove_upload(self, ref: UploadRef) -> None:
        """Removes an upload, if it exists; its parts are collected."""
        self._bucket.delete(upload_key(ref))
        self._sizes.pop(ref, None)

    def remove_uploads(self, user_id: str) -> None:
        """Removes a user's uploads."""
        refs = {upload_of(entry.key) for entry in self._bucket.entries(f"{UPLOADS}{user_id}/")}
        refs |= {ref for ref in list(self._sizes) if ref.user_id == user_id}
        for ref in refs:
            if ref is not None:
                self.remove_upload(ref)

    def free_bytes(self) -> int:
        """Returns how much room the disk has for files that are received or made, without the cache."""
        return free_bytes(self.files.tmp) + self.files.cache.size_bytes

    def total_bytes(self) -> int:
        """Returns the size of the disk."""
        return total_bytes(self.files.tmp)

    def measure(self) -> None:
        """Counts `stored_bytes`, with parts of former blobs that are not collected yet."""
        whole = sum(entry.size_bytes for entry in self._bucket.entries(OBJECTS) if not entry.key.endswith(LIST))
        self.stored_bytes = whole + self._garbage.size_of_parts()

    def sweep(self) -> None:
        """Removes local files of earlier processes."""
        for path in (*self.files.tmp.iterdir(), *files_below(self.files.uploads), *self.files.unfinished_copies()):
            path.unlink(missing_ok=True)
        self.files.cache.begin()

    def unsettled(self) -> Set[str]:
        """Returns nothing: small files are durable when they are stored."""
        return set()

    def recover(self, needed: Set[str]) -> int:
        """Does nothing."""
        return 0

    def close(self) -> None:
        """Waits for what is being put."""
        self._small_pool.shutdown()
        self._part_pool.shutdown()

    @contextmanager
    def collecting(self) -> Iterator[bool]:
        """Yields that blobs may be collected: `fedround backup` does not read them."""
        yield True

    def old(self, min_seconds: float = UNREFERENCED_SECONDS) -> list[str]:
        """Returns the digests of old blobs."""
        return self._garbage.old_blobs(min_seconds)

    def collect(self, digests: Iterable[str], min_seconds: float = UNREFERENCED_SECONDS) -> list[int]:
        """Removes blobs that are still old; returns their sizes."""
        latest = self._garbage.now(min_seconds)
        with ThreadPoolExecutor(REMOVALS, thread_name_prefix="remove") as pool:
            sizes = list(pool.map(lambda digest: self._collect(digest, lambda found: found.modified < latest), digests))
        return [size for size in sizes if size is not None]

    def collect_uploads(self) -> dict[UploadRef, int]:
        """Removes old uploads, and parts that no blob and no upload has; returns the sizes of the uploads."""
        removed = {}
        for ref in self._garbage.old_uploads():
            removed[ref] = self.upload_size(ref)
            self.remove_upload(ref)
        self._garbage.collect_parts()
        return removed

    def record(self, ref: UploadRef, parts: Sequence[Part]) -> None:
        """Stores which parts an upload has."""
        self._bucket.put(upload_key(ref), encode(parts))
        self._sizes[ref] = size_of(parts)

    def forget_upload(self, ref: UploadRef) -> None:
        """Removes an upload, if this process knows that it exists."""
        if ref in self._sizes:
            self.remove_upload(ref)

    def ended(self, ref: UploadRef) -> None:
        """Forgets the writer of an upload."""
        self._writers.pop(ref, None)

    def add(self, blob: BlobRef, path: Path) -> None:
        """Makes a blob of a local file, which stays."""
        self._publish_file(blob, path, self._uploader(StagedRef(path.name), path))
        self.keep(blob)

    def stored(self) -> Iterator[BlobRef]:
        """Yields all blobs, as a listing has them."""
        for entry in self._bucket.entries(OBJECTS):
            sha256 = digest_of(entry.key)
            if sha256 is None:
                continue
            if not entry.key.endswith(LIST):
                yield BlobRef(sha256, entry.size_bytes)
            elif (size := self.files.stored_size(sha256)) is not None:
                yield BlobRef(sha256, size)

    def has(self, blob: BlobRef) -> bool:
        """Returns whether a blob is stored with its size."""
        return self.files.has(blob)

    def _parts(self, ref: UploadRef) -> list[Part]:
        try:
            return self.files.upload_parts(ref)
        except (FileNotFoundError, ValueError):
            return []

    def _uploader(self, ref: StagedRef, path: Path) -> PartUploader:
        return PartUploader(self._bucket, self._part_pool, path, new_group(ref), self.files.part_bytes)

    def _key(self, blob: BlobRef) -> str:
        return blob_key(blob.sha256) if blob.size_bytes <= self.files.part_bytes else list_key(blob.sha256)

    def _publish_file(self, blob: BlobRef, path: Path, uploader: PartUploader) -> None:
        """Makes a blob of a local file."""
        if blob.size_bytes <= self.files.part_bytes:
            self._publish(blob, path.read_bytes())
            return
        uploader.finish(blob.size_bytes)
        for group in sorted({part.group for part in uploader.parts}):
            # Before the list, so that its parts are never without one of both and the record of the upload.
            self._bucket.put(marker_key(group), blob.sha256.encode())
        reached("object.parts_marked")
        self._publish(blob, encode(uploader.parts))

    def _publish(self, blob: BlobRef, data: bytes) -> None:
        """Puts the object that makes a blob, its bytes or the list of its parts."""
        commit = uuid4().hex
        with self._lock_of(blob.sha256):
            is_new = self._removals.put(blob.sha256, self._key(blob), data, commit)
            with self._state_lock:
                self._commits.add(blob.sha256, is_new=is_new)
                self._put_as[blob.sha256] = commit
        if is_new:
            self._count(blob.size_bytes)
        reached("object.put")

    def _store(self, file: SmallFile) -> Exception | None:
        copy = self.files.new_copy()
        try:
            descriptor = os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o400)
            try:
                for piece in file.pieces:
                    write_all(descriptor, piece)
            finally:
                os.close(descriptor)
            self._publish_file(file.blob, copy, self._uploader(StagedRef(copy.name), copy))
            self._keep_copy(copy, file.blob)
        except (OSError, ObjectsUnavailable) as error:
            return explain(error) if isinstance(error, OSError) else error
        finally:
            copy.unlink(missing_ok=True)
        return None

    def _keep_copy(self, path: Path, blob: BlobRef) -> None:
        """Moves a local file into the cache; whoever needs the blob soon need not fetch it."""
        try:
            path.chmod(BLOB_MODE)
            self.files.cache.add(path, blob.sha256)
        except OSError as error:
            log.warning("%s is not kept in the cache: %s", blob.sha256, error)

    def _collect(self, sha256: str, allowed: Callable[[Entry], bool]) -> int | None:
        with self._lock_of(sha256):
            # A row may be about to refer to one that is undecided, even long after its commit.
            with self._state_lock:
                if sha256 in self._commits:
                    return None
            size = self._removals.remove(sha256, blob_key(sha256), allowed)
            if size is None:
                size = self._removals.remove(sha256, list_key(sha256), allowed)
        if size is not None:
            self.files.cache.drop(sha256)
            self._count(-size)
        return size

    def _lock_of(self, sha256: str) -> threading.Lock:
        return self._locks[int(sha256[:4], 16) % LOCKS]

    def _forget_decided(self, sha256: str) -> None:
        if sha256 not in self._commits:
            self._put_as.pop(sha256, None)

    def _count(self, size: int) -> None:
        with self._state_lock:
            self.stored_bytes += size
