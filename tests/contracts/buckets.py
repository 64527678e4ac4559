"""Buckets for tests: in memory or real, with faults, and with objects that seem old."""

import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from obstore.store import MemoryStore, S3Store

from contracts.blobs import PLACES, Place
from damage import flip
from fedround_server.blobs import UNREFERENCED_SECONDS, FileRef, UploadRef
from fedround_server.blobs.objects import ObjectBlobs
from fedround_server.blobs.objects.bucket import Bucket, BucketError, Entry
from fedround_server.blobs.objects.layout import PART_BYTES, PARTS, Part, blob_key, decode, list_key, upload_key
from fedround_server.blobs.objects.s3 import ObstoreBucket
from fedround_server.domain.model import BlobRef
from seaweed import REGION, seaweed

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


def new_memory() -> Bucket:
    return ObstoreBucket(MemoryStore())


def all_keys(bucket: Bucket) -> list[str]:
    return [entry.key for prefix in ("objects/", PARTS, "uploads/", "removing/") for entry in bucket.page(prefix, "")]


class Through:
    """A bucket that passes requests on; others override what they change."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket

    def put(self, key: str, data: bytes, *, create: bool = False, commit: str = "") -> None:
        self.bucket.put(key, data, create=create, commit=commit)

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        return self.bucket.get(key, start, end)

    def head(self, key: str) -> Entry | None:
        return self.bucket.head(key)

    def page(self, prefix: str, after: str) -> list[Entry]:
        return self.bucket.page(prefix, after)

    def delete(self, key: str) -> None:
        self.bucket.delete(key)


class AgedBucket(Through):
    """A bucket some of whose objects seem old, until they are put again."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__(bucket)
        self._old: set[str] = set()

    def age(self, *keys: str) -> None:
        self._old.update(keys)

    def put(self, key: str, data: bytes, *, create: bool = False, commit: str = "") -> None:
        super().put(key, data, create=create, commit=commit)
        self._old.discard(key)

    def head(self, key: str) -> Entry | None:
        found = super().head(key)
        return None if found is None else self._aged(found)

    def page(self, prefix: str, after: str) -> list[Entry]:
        return [self._aged(entry) for entry in super().page(prefix, after)]

    def _aged(self, entry: Entry) -> Entry:
        if entry.key not in self._old:
            return entry
        return replace(entry, modified=entry.modified - timedelta(seconds=UNREFERENCED_SECONDS + 60))


class Requests(Through):
    """A bucket whose requests all pass one function, which may fail them before or after they take effect."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__(bucket)
        self.before: Callable[[str, str], None] = lambda method, key: None
        self.after: Callable[[str, str], None] = lambda method, key: None

    def put(self, key: str, data: bytes, *, create: bool = False, commit: str = "") -> None:
        self.before("put", key)
        super().put(key, data, create=create, commit=commit)
        self.after("put", key)

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        self.before("get", key)
        found = super().get(key, start, end)
        self.after("get", key)
        return found

    def head(self, key: str) -> Entry | None:
        self.before("head", key)
        found = super().head(key)
        self.after("head", key)
        return found

    def page(self, prefix: str, after: str) -> list[Entry]:
        self.before("page", prefix)
        found = super().page(prefix, after)
        self.after("page", prefix)
        return found

    def delete(self, key: str) -> None:
        self.before("delete", key)
        super().delete(key)
        self.after("delete", key)


def unreliable(bucket: Bucket, seed: int, share: float = 0.1) -> Requests:
    """A bucket that often answers 503, and often does what it is asked and loses the answer; not to removals."""
    generator, lock = random.Random(seed), threading.Lock()

    def fail(method: str, key: str) -> None:
        with lock:
            fails = method != "delete" and generator.random() < share
        if fails:
            raise BucketError("it answers 503 SlowDown")

    made = Requests(bucket)
    made.before = made.after = fail
    return made


class Objects(Place):
    """Blobs in a bucket; each opening is a server of its own, with a data directory of its own."""

    part_bytes = PART_BYTES

    def __init__(self, folder: Path) -> None:
        self.bucket = AgedBucket(self.new_bucket())
        self.opener = opener_of(self.wrapped(self.bucket))
        super().__init__(folder)

    def new_bucket(self) -> Bucket:
        return new_memory()

    def wrapped(self, bucket: Bucket) -> Bucket:
        """What servers use; the place itself has no faults."""
        return bucket

    def open(self) -> ObjectBlobs:
        return ObjectBlobs(self.folder / str(uuid4()), self.opener, CACHE_BYTES, self.part_bytes)

    def age(self, ref: FileRef) -> None:
        assert isinstance(ref, BlobRef | UploadRef)
        self.bucket.age(
            *(list_key(ref.sha256), blob_key(ref.sha256)) if isinstance(ref, BlobRef) else [upload_key(ref)]
        )

    def flip(self, blob: BlobRef, position: int) -> None:
        at = position
        for part in self.parts(blob):
            if 0 <= at < part.size_bytes:
                data = bytearray(self.bucket.get(part.key))
                data[at] ^= 1
                self.bucket.put(part.key, bytes(data))
            at -= part.size_bytes
        # A copy in the cache is verified like a file of a local folder.
        flip(self.blobs.files.local_path(blob), position)

    def cut(self, blob: BlobRef) -> None:
        last = self.parts(blob)[-1]
        self.bucket.put(last.key, self.bucket.get(last.key)[:-1])
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


class Parted(Objects):
    """Files of many parts."""

    part_bytes = 1000


class Unreliable(Parted):
    """Files of many parts, in a bucket with faults."""

    part_bytes = 10_000

    def wrapped(self, bucket: Bucket) -> Bucket:
        return unreliable(bucket, 7)


class S3(Objects):
    """A real bucket."""

    part_bytes = 100_000

    def new_bucket(self) -> Bucket:
        return ObstoreBucket(real_store(str(uuid4())))


def real_store(prefix: str) -> S3Store:
    server = seaweed()
    return S3Store(
        "tests",
        prefix=prefix,
        endpoint=server.endpoint,
        region=REGION,
        access_key_id=server.environment()["AWS_ACCESS_KEY_ID"],
        secret_access_key=server.environment()["AWS_SECRET_ACCESS_KEY"],
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
        disable_bulk_delete=True,
    )


PLACES |= {"objects": Objects, "objects in parts": Parted, "unreliable objects": Unreliable, "s3": S3}
