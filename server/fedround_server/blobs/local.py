"""Blobs in a local folder."""

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from uuid import uuid4

from fedround_server.blobs.checksums import examine_file
from fedround_server.blobs.commits import Commits
from fedround_server.blobs.disk_full import explain, map_disk_full
from fedround_server.blobs.files import LocalFiles
from fedround_server.blobs.journal import Journal, groups
from fedround_server.blobs.protocol import UNREFERENCED_SECONDS
from fedround_server.blobs.reader import LocalReader
from fedround_server.blobs.refs import SmallFile, StagedBlob, StagedRef, UploadRef
from fedround_server.blobs.writer import LocalWriter, write_all
from fedround_server.domain.errors import UploadOffset
from fedround_server.domain.model import BlobRef
from fedround_server.failpoints import reached
from fedround_server.host.file_lock import BACKUP_LOCK, OBJECTS_LOCK, SharedLock, beside_objects, try_exclusive
from fedround_server.host.folder import make_private
from fedround_server.host.page_cache import drop_cached_pages, keep_open
from fedround_server.host.sync import sync_file, sync_file_system, sync_folder

log = logging.getLogger(__name__)
BLOB_MODE = 0o400


class LocalBlobs:
    """A folder of blobs; `LocalFiles` has its layout, and `Blobs` describes the rest. Any thread may call it."""

    def __init__(self, root: Path, *, is_shared: bool = False) -> None:
        """Makes the layout of the folder.

        Args:
            root: The folder.
            is_shared: Whether other processes may use its objects, too, which may be a link.
        """
        self.files = LocalFiles(root)
        for folder in (self.files.objects, self.files.uploads, self.files.tmp, self.files.journal):
            make_private(folder)
        sync_folder(root)
        self._backup_lock = beside_objects(root, BACKUP_LOCK)
        self._shared_lock = SharedLock(beside_objects(root, OBJECTS_LOCK)) if is_shared else None
        self.stored_bytes = 0
        # Folders of blobs that are known to be on disk.
        self._durable_folders: set[Path] = set()
        # Those that exist, on disk or not.
        self._folders: set[str] = set()
        self._commits = Commits()
        # Without it, bytes that are committed again between the check of a blob and its removal would be lost.
        self._lock = threading.Lock()
        self._closing = ThreadPoolExecutor(1, thread_name_prefix="closing")
        self._journal = Journal(self.files.journal, self.files.objects, self._rewrite)

    def check_writable(self) -> None:
        """Checks that the folders can be written; before serving only.

        Raises:
            PermissionError: One cannot.
        """
        files = self.files
        for folder in (
            files.objects,
            *filter(Path.is_dir, files.objects.iterdir()),
            files.uploads,
            files.tmp,
            files.journal,
        ):
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    def writer(self, ref: UploadRef | StagedRef, offset: int = 0) -> LocalWriter:
        """Opens a new or a resumed upload."""
        committed = self.upload_size(ref) if isinstance(ref, UploadRef) else 0
        if offset > committed:
            raise UploadOffset(offset, committed)
        return LocalWriter(ref, self.files.local_path(ref), offset)

    def commit(self, staged: StagedBlob) -> None:
        """Makes a file that is on disk a blob, durably."""
        source = self.files.local_path(staged.file)
        try:
            with map_disk_full():
                self._adopt(source, staged.blob)
        except BaseException:
            if isinstance(staged.file, StagedRef):
                source.unlink(missing_ok=True)
            raise

    def store(self, files: Sequence[SmallFile]) -> Sequence[Exception | None]:
        """Makes blobs of small files, durably, with one sync for all of them."""
        return [error for group in groups(files) for error in self._store_group(group)]

    def keep(self, blob: BlobRef) -> None:
        """Leaves a committed blob to the collection."""
        with self._lock:
            self._commits.keep(blob.sha256)

    def release(self, blob: BlobRef) -> None:
        """Removes a committed blob, unless it was stored before or others committed it."""
        target = self.files.local_path(blob)
        with self._lock, keep_open(target, self._closing):
            # Others may have committed the same bytes, and refer to them: those are for the collection.
            if self._commits.release(blob.sha256) and self._shared_lock is None:
                target.unlink(missing_ok=True)
                self.stored_bytes -= blob.size_bytes

    def open(self, blob: BlobRef, offset: int) -> LocalReader:
        """Opens a blob for reading from an offset, in chunks."""
        return LocalReader(self.files.local_path(blob), blob, offset)

    def open_cached(self, blob: BlobRef, offset: int) -> LocalReader | None:
        """Opens a blob without waiting for another machine."""
        return self.open(blob, offset)

    def examine(self, blob: BlobRef) -> BlobRef:
        """Reads all of a blob, and returns it with the checksums of its blocks."""
        return examine_file(self.files.local_path(blob), blob)

    def upload_size(self, ref: UploadRef) -> int:
        """Returns how many bytes of an upload are stored."""
        try:
            return self.files.local_path(ref).stat().st_size
        except FileNotFoundError:
            return 0

    def known_size(self, ref: UploadRef) -> int:
        """Returns the same: no other server shares the folder."""
        return self.upload_size(ref)

    def unfinished_uploads(self) -> Iterator[tuple[UploadRef, int]]:
        """Yields all uploads with their sizes."""
        for path in files_below(self.files.uploads):
            with _skip_errors(path):
                yield _upload_at(path), path.stat().st_size

    def remove_upload(self, ref: UploadRef) -> None:
        """Removes an upload, if it exists."""
        self.files.local_path(ref).unlink(missing_ok=True)

    def remove_uploads(self, user_id: str) -> None:
        """Removes a user's uploads."""
        shutil.rmtree(self.files.uploads / user_id, ignore_errors=True)

    def free_bytes(self) -> int:
        """Returns how much room the disk has for files of this process."""
        return free_bytes(self.files.objects)

    def total_bytes(self) -> int:
        """Returns the size of the disk."""
        return total_bytes(self.files.objects)

    def measure(self) -> None:
        """Counts `stored_bytes`."""
        folders = [folder for folder in os.scandir(self.files.objects) if folder.is_dir()]
        self.stored_bytes = sum(_file_size(entry.path) for folder in folders for entry in os.scandir(folder))

    def sweep(self) -> None:
        """Removes staged files of earlier processes."""
        for path in self.files.tmp.iterdir():
            path.unlink()

    def unsettled(self) -> Set[str]:
        """Returns the digests of small files that earlier processes may have left in memory."""
        return {file.blob.sha256 for file in self._journal.left()}

    def recover(self, needed: Set[str]) -> int:
        """Makes small files of earlier processes durable that a crash of the machine may have damaged or lost."""
        count = 0
        objects = os.open(self.files.objects, os.O_RDONLY | os.O_DIRECTORY)
        try:
            is_synced = sync_file_system(objects)
        finally:
            os.close(objects)
        for file in self._journal.left():
            path = self.files.local_path(file.blob)
            with self._lock, self._sharing(is_exclusive=True):
                # From the disk: after an error, which may have been reported to an earlier process, memory shows more.
                drop_cached_pages(path)
                is_whole = _is_whole(path, file.data)
                if file.blob.sha256 not in needed and not is_whole:
                    path.unlink(missing_ok=True)
            if file.blob.sha256 in needed and not (is_whole and is_synced):
                self._rewrite(file, even_if_missing=True)
                count += not is_whole
        self._journal.remove_left()
        return count

    def close(self) -> None:
        """Leaves nothing to recover, if possible."""
        self._journal.close()

    @contextmanager
    def collecting(self) -> Iterator[bool]:
        """Yields whether blobs may be collected within the block: not while a backup is made."""
        with try_exclusive(self._backup_lock) as is_free:
            yield is_free

    def old(self, min_seconds: float = UNREFERENCED_SECONDS) -> list[str]:
        """Returns the digests of old blobs."""
        return [path.name for path in files_below(self.files.objects) if _is_old(path, min_seconds)]

    def collect(self, digests: Iterable[str], min_seconds: float = UNREFERENCED_SECONDS) -> list[int]:
        """Removes blobs that are still old; returns their sizes."""
        sizes = []
        for digest in digests:
            with self._lock, self._sharing(is_exclusive=True):
                # A row may be about to refer to one that is undecided, even long after its commit.
                size = None if digest in self._commits else _remove_if_old(self.files.blob_path(digest), min_seconds)
                if size is not None:
                    self.stored_bytes -= size
                    sizes.append(size)
        return sizes

    def collect_uploads(self) -> dict[UploadRef, int]:
        """Removes old uploads; returns their sizes."""
        removed = {_upload_at(path): _remove_if_old(path) for path in files_below(self.files.uploads)}
        return {ref: size for ref, size in removed.items() if size is not None}

    def _sharing(self, *, is_exclusive: bool) -> AbstractContextManager[None]:
        """Keeps other processes from removing blobs within the block, or also from committing any."""
        return nullcontext() if self._shared_lock is None else self._shared_lock.holding(is_exclusive=is_exclusive)

    def _store_group(self, files: Sequence[SmallFile]) -> list[Exception | None]:
        """Makes blobs of files that fit into the journal together; returns their errors."""
        try:
            with self._journal.holding(files) as is_held:
                staged = f"{self.files.tmp}/{uuid4()}"
                return [self._store(file, f"{staged}-{n}", is_held=is_held) for n, file in enumerate(files)]
        except OSError as error:
            return [explain(error)] * len(files)

    def _store(self, file: SmallFile, staged: str, *, is_held: bool) -> Exception | None:
        """Makes a blob of a file, which the journal holds or does not; returns the error.

        Its bytes never have their digest as their name in part: backups read all files that have one.
        """
        blob = file.blob
        folder = f"{self.files.objects}/{blob.sha256[:2]}"
        try:
            _write(staged, file.pieces, is_synced=not is_held)
            if is_held:
                if folder not in self._folders:
                    make_private(Path(folder))
                    self._folders.add(folder)
                with self._lock:
                    self._rename(staged, f"{folder}/{blob.sha256}", blob)
            else:
                self._adopt(Path(staged), blob)
        except OSError as error:
            with suppress(OSError):
                Path(staged).unlink()
            return explain(error)
        reached("blob.stored")
        return None

    def _rewrite(self, file: SmallFile, *, even_if_missing: bool = False) -> None:
        """Writes the file of a blob anew, durably; one that is missing was removed."""
        target = self.files.local_path(file.blob)
        self._make_durable(target.parent)
        with self.files.stage() as (_, path):
            _write(path, file.pieces, is_synced=True)
            with self._lock:
                if even_if_missing or target.exists():
                    path.replace(target)
                else:
                    path.unlink()
        sync_folder(target.parent)

    def _make_durable(self, folder: Path) -> None:
        if folder not in self._durable_folders:
            # Even one that exists: the process that made it may have been killed before it was on disk.
            make_private(folder)
            sync_folder(self.files.objects)
            self._durable_folders.add(folder)

    def _adopt(self, source: Path, blob: BlobRef) -> None:
        target = self.files.local_path(blob)
        self._make_durable(target.parent)
        # Before the rename: a collector of another process never sees an old time.
        os.utime(source)
        with self._lock, keep_open(target, self._closing):
            self._rename(source, target, blob)
            reached("blob.renamed")
            # After the rename: an upload whose commit is interrupted before it must stay writable.
            target.chmod(BLOB_MODE)
        sync_folder(target.parent)
        reached("blob.folder_synced")

    def _rename(self, source: Path | str, target: Path | str, blob: BlobRef) -> None:
        """Gives a file its digest as its name, and counts it as a commit; the caller has the lock."""
        replaced = _file_size(target)
        with self._sharing(is_exclusive=False):
            os.replace(source, target)  # noqa: PTH105 -- paths of small files are strings: making a Path takes as long
        self.stored_bytes += blob.size_bytes - replaced
        self._commits.add(blob.sha256, is_new=not replaced)


def free_bytes(folder: Path) -> int:
    """Returns how much room the disk of a folder has for files of this process."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def total_bytes(folder: Path) -> int:
    """Returns the size of the disk of a folder."""
    disk = os.statvfs(folder)
    return disk.f_blocks * disk.f_frsize


def _upload_at(path: Path) -> UploadRef:
    return UploadRef(path.parent.name, path.name)


def files_below(folder: Path) -> Iterator[Path]:
    """Yields the files of a folder's subfolders."""
    for sub in list(folder.iterdir()):
        inside: list[Path] = []
        with _skip_errors(sub):
            inside = list(sub.iterdir())
        yield from inside


def _is_old(path: Path, min_seconds: float) -> bool:
    """Returns whether a file was neither written nor touched for so long that it may be collected."""
    with _skip_errors(path):
        return path.stat().st_mtime < time.time() - min_seconds
    return False


def _is_whole(path: Path, data: bytes) -> bool:
    """Returns whether a file exists, can be read, and has the data."""
    try:
        return path.read_bytes() == data
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False


def _file_size(path: Path | str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            log.warning("%s stays as it is: %s", path, error)
    return 0


def _write(path: Path | str, pieces: Sequence[bytes], *, is_synced: bool) -> None:
    """Writes a new file, which is read-only then."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, BLOB_MODE)
    try:
        for piece in pieces:
            write_all(descriptor, piece)
        if is_synced:
            sync_file(descriptor)
    finally:
        os.close(descriptor)


def _remove_if_old(path: Path, min_seconds: float = UNREFERENCED_SECONDS) -> int | None:
    """Removes a file if it is old; returns its size if it was removed."""
    with _skip_errors(path):
        if _is_old(path, min_seconds):
            size = path.stat().st_size
            path.unlink()
            return size
    return None


@contextmanager
def _skip_errors(path: Path) -> Iterator[None]:
    """Ends the block at an error, so that one path does not stop the others.

    A path that is gone was removed or committed meanwhile; any other error is logged.
    """
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("%s stays as it is: %s", path, error)
