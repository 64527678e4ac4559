"""The implementations of a blob store, each with what the contract has to do to it from outside."""

import hashlib
import os
import time
from abc import ABC, abstractmethod
from pathlib import Path

import google_crc32c

from damage import flip
from fedround_server.blobs import UNREFERENCED_SECONDS, Blobs, FileRef, SmallFile, StagedRef, UploadRef
from fedround_server.blobs.local import LocalBlobs
from fedround_server.domain.chunk import Chunk
from fedround_server.domain.model import BlobRef


class Place(ABC):
    """A place that has blobs, whichever process opens it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = self.open()

    @abstractmethod
    def open(self) -> Blobs:
        """Opens it like another process."""

    def make_old(self, ref: FileRef) -> None:
        """Makes a file so old that it may be collected, and leaves it to the collection."""
        if isinstance(ref, BlobRef):
            self.blobs.keep(ref)
        self.age(ref)

    @abstractmethod
    def age(self, ref: FileRef) -> None:
        """Makes a file old."""

    @abstractmethod
    def flip(self, blob: BlobRef, position: int) -> None:
        """Flips a bit of a byte of a blob, as a disk might."""

    @abstractmethod
    def cut(self, blob: BlobRef) -> None:
        """Takes the last byte off a blob."""

    @abstractmethod
    def remove(self, blob: BlobRef) -> None:
        """Removes the bytes of a blob."""


class Local(Place):
    def open(self) -> Blobs:
        return LocalBlobs(self.folder)

    def age(self, ref: FileRef) -> None:
        long_ago = time.time() - UNREFERENCED_SECONDS - 60
        os.utime(self.blobs.files.local_path(ref), (long_ago, long_ago))

    def flip(self, blob: BlobRef, position: int) -> None:
        flip(self.blobs.files.local_path(blob), position)

    def cut(self, blob: BlobRef) -> None:
        path = self.blobs.files.local_path(blob)
        path.chmod(0o600)
        os.truncate(path, blob.size_bytes - 1)

    def remove(self, blob: BlobRef) -> None:
        self.blobs.files.local_path(blob).unlink()


PLACES: dict[str, type[Place]] = {"local": Local}


ONE = StagedRef("one")


def chunk_of(data: bytes) -> Chunk:
    """Bytes as they come in."""
    return Chunk(data, google_crc32c.value(data))


def put(blobs: Blobs, data: bytes, ref: UploadRef | StagedRef = ONE) -> BlobRef:
    """Stores a blob like a finished upload."""
    with blobs.writer(ref) as writer:
        writer.write(data)
        writer.sync()
        blobs.commit(writer.staged)
        return writer.staged.blob


def small(data: bytes) -> SmallFile:
    """A small file that came in whole."""
    return SmallFile(BlobRef(hashlib.sha256(data).hexdigest(), len(data)), [data])


def put_small(blobs: Blobs, data: bytes) -> BlobRef:
    """Stores a blob like a small upload."""
    file = small(data)
    assert blobs.store([file]) == [None]
    return file.blob
