"""Model files that were fetched, on disk, for when they are wanted again."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from fedround_client.tensors import Framework, SafetensorsReader
from fedround_client.transfer import CHUNK

logger = logging.getLogger(__name__)

CACHE_BYTES = 16 << 30
SPOOL_BYTES = 16 << 20
"""What a file without a name may have before it goes to disk."""
# Nothing else in the folder is touched: it may be one of the user's own.
_OURS = re.compile(r"[0-9a-f]{64}\.safetensors(\.[0-9a-f]{32})?")


class SharedFile:
    """A file that several threads read; it is closed when nobody has it any more."""

    def __init__(self, file: IO[bytes]) -> None:
        """Takes over a file."""
        self.file = file
        self._lock = threading.Lock()

    def __del__(self) -> None:
        """Closes it."""
        with suppress(OSError):
            self.file.close()

    def read(self, place: int, length: int) -> bytes:
        """Returns bytes from a place on, fewer at the end."""
        with self._lock:
            self.file.seek(place)
            return self.file.read(length)


class ModelCache:
    """Keeps the file that was used last, and in a folder also others, each under its digest.

    Without a folder the file has no name: it is gone with the process. A cache that cannot be written to keeps nothing,
    and hinders nobody.
    """

    def __init__(self, folder: str | PathLike[str] | None = None, max_bytes: int = CACHE_BYTES) -> None:
        """Begins with what is in the folder.

        Args:
            folder: Made if it is not there; several processes may share it.
            max_bytes: What its files may have together; those unused for longest go first, and the latest one stays.

        Raises:
            OSError: The folder cannot be made.
        """
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._max_bytes = max_bytes
        self._sha256 = ""
        self._file: SharedFile | None = None

    def close(self) -> None:
        """Lets go of the file that was used last."""
        self._sha256, self._file = "", None

    def open(self, sha256: str) -> SharedFile | None:
        """Returns the file with a digest, if it is here."""
        if sha256 != self._sha256:
            self.close()
            if self._folder is not None:
                path = self._folder / f"{sha256}.safetensors"
                with suppress(OSError):
                    self._file, self._sha256 = SharedFile(path.open("rb")), sha256
                    os.utime(path)
        return self._file

    def load(self, sha256: str, framework: Framework) -> dict[str, Any] | None:
        """Reads the tensors of the file with a digest, if it is here and not damaged.

        Raises:
            TensorError: It holds a dtype that numpy does not have.
        """
        file = self.open(sha256)
        if file is None:
            return None
        arrival, digest, place = SafetensorsReader(framework), hashlib.sha256(), 0
        with suppress(OSError):
            while data := file.read(place, CHUNK):
                arrival.write(data)
                digest.update(data)
                place += len(data)
        if digest.hexdigest() == sha256:
            return arrival.tensors()
        logger.warning("The model file %s in the cache is damaged, and is not used.", sha256)
        self.close()
        return None

    @contextmanager
    def keeping(self, sha256: str) -> Iterator[CacheWriter]:
        """Takes in a file during a `with` block, which must leave with an error if the file is not the right one."""
        # First, for the room that it takes.
        self.close()
        name = f"{sha256}.safetensors"
        part = None if self._folder is None else self._folder / f"{name}.{uuid4().hex}"
        kept = CacheWriter(part)
        try:
            yield kept
            if part is not None:
                kept.rename(part.with_name(name))
                self._shrink(part.with_name(name))
            if kept.file is not None:
                self._sha256, self._file = sha256, SharedFile(kept.file)
        except BaseException:
            kept.drop()
            raise
        finally:
            if part is not None:
                with suppress(OSError):
                    part.unlink(missing_ok=True)

    def _shrink(self, latest: Path) -> None:
        """Removes what is too much."""
        found = []
        for path in latest.parent.iterdir():
            # Another process may have removed it.
            with suppress(OSError):
                if _OURS.fullmatch(path.name) and path != latest:
                    status = path.stat()
                    found.append((status.st_mtime, status.st_size, path))
        with suppress(OSError):
            room = self._max_bytes - latest.stat().st_size
            for _, size, path in sorted(found, reverse=True):
                room -= size
                if room < 0:
                    path.unlink(missing_ok=True)


class CacheWriter:
    """A file that is being kept, as far as the disk allows.

    Attributes:
        file: The file; None if there is no room for it.
    """

    def __init__(self, path: Path | None) -> None:
        """Opens it.

        Args:
            path: Where; None for a file without a name.
        """
        self.file: IO[bytes] | None = None
        with self._tolerance():
            self.file = _temporary() if path is None else path.open("x+b")

    def write(self, data: bytes, /) -> None:
        """Appends data."""
        with self._tolerance():
            if self.file is not None:
                self.file.write(data)

    def rename(self, path: Path) -> None:
        """Gives it its name, now that it is complete."""
        with self._tolerance():
            if self.file is not None:
                self.file.flush()
                Path(self.file.name).replace(path)

    def drop(self) -> None:
        """Lets go of it."""
        if self.file is not None:
            with suppress(OSError):
                self.file.close()
        self.file = None

    @contextmanager
    def _tolerance(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.warning("A model is not kept, and will be fetched again when it is wanted: %s", error)
            self.drop()


def _temporary() -> IO[bytes]:
    return tempfile.SpooledTemporaryFile(SPOOL_BYTES)
