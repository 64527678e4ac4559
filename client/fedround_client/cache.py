"""A cache of downloaded model files on disk."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from fedround_client.download import file_sha256
from fedround_client.logs import get_logger
from fedround_client.payload import CHUNK
from fedround_client.safetensors_reader import SafetensorsReader
from fedround_client.tensor_types import Framework

logger = get_logger(__name__)

CACHE_BYTES = 16 << 30
SPOOL_BYTES = 16 << 20
"""Size up to which a temporary file stays in memory."""
# No other file is touched: the folder may contain files of the user.
_CACHE_FILE = re.compile(r"[0-9a-f]{64}\.safetensors(\.[0-9a-f]{32})?")


class SharedFile:
    """A file that several threads may read. It is closed when the last reference to it is dropped."""

    def __init__(self, file: IO[bytes]) -> None:
        """Takes ownership of an open file."""
        self.file = file
        self._lock = threading.Lock()
        # In a cycle, such as that of an exception and its frames, this closes the file before it is finalized itself,
        # which would warn; __del__ may be too late.
        weakref.finalize(self, _close, file)

    def read(self, offset: int, length: int) -> bytes:
        """Returns bytes from an offset on; fewer at the end of the file."""
        with self._lock:
            self.file.seek(offset)
            return self.file.read(length)


def _close(file: IO[bytes]) -> None:
    with suppress(OSError):
        file.close()


class ModelCache:
    """Keeps the file that was used last open; with a folder, also keeps other files, each under its digest.

    Without a folder the file is a temporary one, which ends with the process. If the disk is full or cannot be written
    to, nothing is cached, and no error is raised.
    """

    def __init__(self, folder: str | PathLike[str] | None = None, max_bytes: int = CACHE_BYTES) -> None:
        """Opens a cache, with the files that the folder has.

        Args:
            folder: Created if it does not exist; several processes may share it. None for a temporary file.
            max_bytes: Limit on the size of all files together. The least recently used files are removed first; the
                latest one stays even if it is larger.

        Raises:
            OSError: The folder cannot be created.
        """
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._max_bytes = max_bytes
        self._sha256 = ""
        self._file: SharedFile | None = None

    def close(self) -> None:
        """Drops the file that was used last."""
        self._sha256, self._file = "", None

    def open(self, sha256: str) -> SharedFile | None:
        """Returns the file with a digest; None if it is not cached."""
        if sha256 != self._sha256:
            self.close()
            if self._folder is not None:
                path = self._folder / f"{sha256}.safetensors"
                with suppress(OSError):
                    self._file, self._sha256 = SharedFile(path.open("rb")), sha256
                    os.utime(path)
        return self._file

    def load(self, sha256: str, framework: Framework | None) -> dict[str, Any] | None:
        """Returns the tensors of the file with a digest, as a SafetensorsReader; None if it is not cached, or damaged.

        Raises:
            TensorError: It has a dtype that numpy does not have.
        """
        file = self.open(sha256)
        if file is None:
            return None
        reader, digest, offset = SafetensorsReader(framework), hashlib.sha256(), 0
        with suppress(OSError):
            while data := file.read(offset, CHUNK):
                reader.write(data)
                digest.update(data)
                offset += len(data)
        if digest.hexdigest() == sha256:
            return reader.tensors()
        logger.warning("The model file %s in the cache is damaged, and is not used.", sha256)
        self.close()
        return None

    @contextmanager
    def writer(self, sha256: str, *, is_read_again: bool = True) -> Iterator[CacheWriter]:
        """Adds a file to the cache at the end of the `with` block, unless the block raises.

        The caller must write bytes that have the digest, or raise. A temporary file is only made if it is probably read
        again.
        """
        # First, to free the space of the previous temporary file.
        self.close()
        name = f"{sha256}.safetensors"
        part = None if self._folder is None else self._folder / f"{name}.{uuid4().hex}"
        writer = CacheWriter(part)
        if part is None and not is_read_again:
            writer.discard()
        try:
            yield writer
            if part is not None:
                writer.rename(part.with_name(name))
                self._evict(part.with_name(name))
            if writer.file is not None:
                self._sha256, self._file = sha256, SharedFile(writer.file)
        except BaseException:
            writer.discard()
            raise
        finally:
            if part is not None:
                with suppress(OSError):
                    part.unlink(missing_ok=True)

    # The name that it had before; scripts use it.
    keeping = writer

    def add(self, sha256: str, data: bytes) -> None:
        """Adds a file that is in memory. Without a folder it stays there, and is not copied."""
        if self._folder is None:
            self._sha256, self._file = sha256, SharedFile(io.BytesIO(data))
            return
        with self.writer(sha256) as file:
            file.write(data)

    def _evict(self, latest: Path) -> None:
        """Removes the least recently used files until the rest fits into the limit."""
        files = []
        for path in latest.parent.iterdir():
            # Another process may have removed it.
            with suppress(OSError):
                if _CACHE_FILE.fullmatch(path.name) and path != latest:
                    status = path.stat()
                    files.append((status.st_mtime, status.st_size, path))
        with suppress(OSError):
            remaining = self._max_bytes - latest.stat().st_size
            for _, size, path in sorted(files, reverse=True):
                remaining -= size
                if remaining < 0:
                    # On Windows it stays while another process reads it.
                    with suppress(OSError):
                        path.unlink(missing_ok=True)


class CacheWriter:
    """Writes a file of the cache. After the first OSError it ignores what is written.

    Attributes:
        file: The file; None after an error.
    """

    def __init__(self, path: Path | None) -> None:
        """Opens the file.

        Args:
            path: Where to create the file; None for a temporary file.
        """
        self.file: IO[bytes] | None = None
        with self._discard_on_error():
            self.file = _temporary() if path is None else path.open("x+b")

    def write(self, data: bytes, /) -> None:
        """Appends data."""
        with self._discard_on_error():
            if self.file is not None:
                self.file.write(data)

    def rename(self, path: Path) -> None:
        """Moves the complete file to its final path, and opens it there for reading.

        It is closed meanwhile: Windows does not rename open files. It does not replace them either, so if another
        process reads the same file at the final path, that one stays.
        """
        with self._discard_on_error():
            if self.file is not None:
                self.file.close()
                try:
                    Path(self.file.name).replace(path)
                except PermissionError:
                    if file_sha256(path) != path.stem:
                        raise
                self.file = path.open("r+b")

    def discard(self) -> None:
        """Closes the file."""
        if self.file is not None:
            with suppress(OSError):
                self.file.close()
        self.file = None

    @contextmanager
    def _discard_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.warning("A model is not cached, and will be downloaded again when it is needed: %s", error)
            self.discard()


def _temporary() -> IO[bytes]:
    return tempfile.SpooledTemporaryFile(SPOOL_BYTES)
