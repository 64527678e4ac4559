"""The implementations of a blob store, each with what the contract has to do to it from outside."""

import os
import time
from abc import ABC, abstractmethod
from pathlib import Path

from fedround_server.blobs import Blobs, FileRef, StagedRef, UploadRef
from fedround_server.blobs.local import UNREFERENCED_SECONDS, LocalBlobs
from fedround_server.domain.model import BlobRef


class Place(ABC):
    """A place that has blobs, whichever process opens it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = self.open()

    @abstractmethod
    def open(self) -> Blobs:
        """Opens it like another process."""

    @abstractmethod
    def make_old(self, ref: FileRef) -> None:
        """Makes a file so old that it may be collected."""


class Local(Place):
    def open(self) -> Blobs:
        return LocalBlobs(self.folder)

    def make_old(self, ref: FileRef) -> None:
        long_ago = time.time() - UNREFERENCED_SECONDS - 60
        os.utime(self.blobs.files.local_path(ref), (long_ago, long_ago))


PLACES: dict[str, type[Place]] = {"local": Local}


ONE = StagedRef("one")


def put(blobs: Blobs, data: bytes, ref: UploadRef | StagedRef = ONE) -> BlobRef:
    """Stores a blob like a finished upload."""
    with blobs.writer(ref) as writer:
        writer.write(data)
        writer.sync()
        blobs.commit(writer.staged)
        return writer.staged.blob
