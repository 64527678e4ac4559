"""Copies files by their digests, durably."""

import errno
import os
from hashlib import sha256
from pathlib import Path

from fedround_server.backup.layout import READ_BYTES
from fedround_server.host.folder import make_private
from fedround_server.host.sync import sync_folder

BLOB_MODE = 0o400


class Copier:
    """Copies files, and forces the folders of the copies to disk at the end.

    Attributes:
        num_copied: How many files it has copied or linked.
        bytes_copied: Their size together, in bytes.
    """

    def __init__(self, *, link: bool = False) -> None:
        """Creates it.

        Args:
            link: Make hard links, and copy nothing.
        """
        self.num_copied = 0
        self.bytes_copied = 0
        self._link = link
        self._folders: set[Path] = set()

    def copy(self, source: Path, target: Path, digest: str, mode: int = BLOB_MODE) -> bool:
        """Copies a file, unless the copy exists with the same size.

        Args:
            source: The file.
            target: The copy, which appears whole or not at all.
            digest: The SHA-256 that the file must have; a link is not read.
            mode: Rights on the copy.

        Returns:
            Whether the file exists and has that digest; otherwise nothing was copied.

        Raises:
            OSError: The copy cannot be written.
        """
        try:
            file = source.open("rb", buffering=0)
        except FileNotFoundError:
            return target.is_file()
        with file:
            size = os.fstat(file.fileno()).st_size
            if target.is_file() and target.stat().st_size == size:
                return True
            if target.parent not in self._folders:
                make_private(target.parent)
                self._folders.add(target.parent)
            part = target.with_name(f".{target.name}")
            part.unlink(missing_ok=True)
            if self._link:
                # The journal, which is not in the backup, may have it on disk, and the file itself not yet be.
                os.fsync(file.fileno())
                part.hardlink_to(source)
            elif not _write(file.fileno(), part, digest, mode):
                part.unlink()
                return False
            part.replace(target)
        self.num_copied += 1
        self.bytes_copied += size
        return True

    def sync(self) -> None:
        """Forces the folders of the copies to disk."""
        for folder in self._folders:
            sync_folder(folder)
        for folder in {folder.parent for folder in self._folders}:
            sync_folder(folder)


def _write(source: int, part: Path, digest: str, mode: int) -> bool:
    found = sha256()
    descriptor = os.open(part, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        while data := _read(source):
            found.update(data)
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    return found.hexdigest() == digest


def _read(source: int) -> bytes:
    """Reads on; what the disk cannot read ends the file, which has another digest then."""
    try:
        return os.read(source, READ_BYTES)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""
