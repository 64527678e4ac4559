"""Servers that share a bucket, and uploads to them."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from contracts.buckets import CACHE_BYTES, AgedBucket, all_keys, new_memory, opener_of
from fedround_server.blobs import BlobDigest, UploadRef
from fedround_server.blobs.objects import ObjectBlobs
from fedround_server.blobs.objects.bucket import Bucket
from fedround_server.domain.model import BlobRef

UPLOAD = UploadRef("user", "upload")
PART = 10
DATA = random.Random(1).randbytes(37)
WHOLE = BlobDigest()
WHOLE.update(DATA)


@dataclass
class Servers:
    """Servers that share a bucket, each with a data directory of its own."""

    folder: Path
    bucket: AgedBucket = field(default_factory=lambda: AgedBucket(new_memory()))
    part_bytes: int = PART

    def start(self, through: Callable[[Bucket], Bucket] = lambda bucket: bucket) -> ObjectBlobs:
        number = len(list(self.folder.iterdir()))
        opener = opener_of(through(self.bucket))
        return ObjectBlobs(self.folder / str(number), opener, CACHE_BYTES, self.part_bytes)

    def age_all(self) -> None:
        self.bucket.age(*all_keys(self.bucket))

    def read(self, blob: BlobRef) -> bytes:
        """What a server that has no copy reads."""
        return self.start().files.local_path(blob).read_bytes()


def upload(blobs: ObjectBlobs, data: bytes = DATA, ref: UploadRef = UPLOAD) -> BlobRef:
    """Sends what of an upload is missing, like a client."""
    offset = blobs.upload_size(ref)
    with blobs.writer(ref, offset) as writer:
        seen = bytearray()
        writer.replay(seen.extend)
        assert bytes(seen) == data[:offset]
        for start in range(offset, len(data), 4):
            writer.write(data[start : start + 4])
        writer.sync()
        blobs.commit(writer.staged)
        return writer.staged.blob


def leave(blobs: ObjectBlobs, size: int) -> None:
    """Leaves an upload unfinished."""
    with blobs.writer(UPLOAD) as writer:
        writer.write(DATA[:size])
