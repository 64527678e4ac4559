"""Buckets for tests: in memory, with faults, and with objects that seem old."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

from obstore.store import MemoryStore

from contracts.blobs import PLACES, Place
from damage import flip
from fedround_server.blobs import UNREFERENCED_SECONDS, Blobs, FileRef, UploadRef
from fedround_server.blobs.objects.blobs import ObjectBlobs
from fedround_server.blobs.objects.bucket import Bucket, Entry
from fedround_server.blobs.objects.layout import PART_BYTES, Part, blob_key, decode, list_key, upload_key
from fedround_server.blobs.objects.s3 import ObstoreBucket
from fedround_server.domain.model import BlobRef

CACHE_BYTES = 1 << 30
_BUCKETS: dict[str, Bucket] = {}


@dataclass(frozen=True)
class Opener:
    """Opens a bucket of this process; can be pickled."""

    name: str

    def __call__(self) -> Bucket:
        return _BUCKETS[self.name]


def opener_of(bucket: Bucket) -> Opener:
    name = str(uuid4())
    _BUCKETS[name] = bucket
    return Opener(name)


class AgedBucket:
    """A bucket some of whose objects seem old, until they are put again."""

    def __init__(self, bucket: Bucket) -> None:
        self.put, self.get, self.delete = bucket.put, bucket.get, bucket.delete
        self._bucket = bucket
        self._old: dict[str, datetime] = {}

    def age(self, prefix: str) -> None:
        self._old |= {one.key: one.modified for one in self._bucket.entries("") if one.key.startswith(prefix)}

    def head(self, key: str) -> Entry | None:
        found = self._bucket.head(key)
        return None if found is None else self._aged(found)

    def entries(self, prefix: str) -> Iterator[Entry]:
        return map(self._aged, self._bucket.entries(prefix))

    def _aged(self, entry: Entry) -> Entry:
        if self._old.get(entry.key) != entry.modified:
            return entry
        return replace(entry, modified=entry.modified - timedelta(seconds=UNREFERENCED_SECONDS + 60))


class Objects(Place):
    """Blobs in a bucket; each opening is a server of its own, with a data directory of its own."""

    part_bytes = PART_BYTES

    def __init__(self, folder: Path) -> None:
        self.bucket = AgedBucket(self.new_bucket())
        self.opener = opener_of(self.wrapped(self.bucket))
        super().__init__(folder)

    def new_bucket(self) -> Bucket:
        return ObstoreBucket(MemoryStore())

    def wrapped(self, bucket: Bucket) -> Bucket:
        return bucket

    def open(self) -> Blobs:
        return ObjectBlobs(self.folder / str(uuid4()), self.opener, CACHE_BYTES, self.part_bytes)

    def age(self, ref: FileRef) -> None:
        assert isinstance(ref, BlobRef | UploadRef)
        self.bucket.age(blob_key(ref.sha256) if isinstance(ref, BlobRef) else upload_key(ref))

    def flip(self, blob: BlobRef, position: int) -> None:
        def flipped(data: bytes, at: int) -> bytes:
            changed = bytearray(data)
            changed[at] ^= 1
            return bytes(changed)

        for part in self.parts(blob):
            if 0 <= position < part.size_bytes:
                self._change(part, lambda data, at=position: flipped(data, at))
            position -= part.size_bytes
        flip(self.blobs.files.local_path(blob), position + blob.size_bytes)

    def cut(self, blob: BlobRef) -> None:
        self._change(self.parts(blob)[-1], lambda data: data[:-1])
        path = self.blobs.files.local_path(blob)
        path.chmod(0o600)
        os.truncate(path, blob.size_bytes - 1)

    def remove(self, blob: BlobRef) -> None:
        self.blobs.files.local_path(blob).unlink()
        for key in (blob_key(blob.sha256), list_key(blob.sha256)):
            self.bucket.delete(key)

    def parts(self, blob: BlobRef) -> list[Part]:
        if blob.size_bytes <= self.part_bytes:
            return [Part(blob_key(blob.sha256), blob.size_bytes)]
        return decode(self.bucket.get(list_key(blob.sha256)))

    def _change(self, part: Part, change: Callable[[bytes], bytes]) -> None:
        self.bucket.put(part.key, change(self.bucket.get(part.key)))


class Parted(Objects):
    """The same, with files of many parts."""

    part_bytes = 1000


PLACES |= {"objects": Objects, "objects in parts": Parted}
