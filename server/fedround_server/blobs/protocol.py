"""What a blob store is. `tests/contracts/test_blobs.py` has the contract that every implementation passes."""

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from fedround_server.blobs.refs import FileRef, SmallFile, StagedBlob, StagedRef, UploadRef
from fedround_server.domain.chunk import Chunk
from fedround_server.domain.model import BlobRef

UNREFERENCED_SECONDS = 24 * 3600.0
"""How old a blob without a row must be before it is collected: its transaction may be in progress.

An upload that is not continued for so long is removed, too.
"""


class BlobWriter(AbstractContextManager["BlobWriter", None], Protocol):
    """A file that is being received; digest and checksums are computed while it is written. Its block closes it.

    Leaving the block removes a staged file that was not committed. A resumable upload stays for the next attempt,
    unless it is empty or was discarded.
    """

    @property
    def size_bytes(self) -> int:
        """How many bytes were replayed and written."""

    @property
    def staged(self) -> StagedBlob:
        """What was replayed and written, to be committed after `sync`."""

    def replay(self, see: Callable[[bytes], None]) -> None:
        """Hashes what an earlier attempt left, and passes it to `see`; before anything is written."""

    def write(self, data: bytes, crc32c: int | None = None) -> None:
        """Appends data, all of it or nothing.

        Args:
            data: The next bytes.
            crc32c: Their CRC-32C, if the caller has computed it.

        Raises:
            DiskFull: There is no room for it.
        """

    def sync(self) -> None:
        """Makes the file durable.

        Raises:
            DiskFull: There is no room for it.
            OSError: The file cannot be made durable. Leaving the block removes it, so that another attempt writes all
                of it again.
        """

    def discard(self) -> None:
        """Makes leaving the block remove the file, even a resumable upload: another attempt could not repair it."""


class BlobReader(AbstractContextManager["BlobReader", None], Protocol):
    """A blob that is being sent, chunk by chunk. Its `with` block closes it.

    Chunks end where blocks of the file end, every `BLOCK_BYTES`. Each is verified, if the reference that the blob was
    opened with has checksums.
    """

    def read_cached(self) -> Chunk | None:
        """Reads the next chunk if that takes no waiting; otherwise returns None and reads nothing.

        Raises:
            BlobDamaged: The file does not have the bytes that were stored.
        """

    def read(self) -> Chunk:
        """Reads the next chunk, which is empty at the end. May wait.

        Raises:
            BlobDamaged: The file cannot be read, or does not have the bytes that were stored.
        """


class BlobFiles(Protocol):
    """The bytes behind references, in any process: can be pickled, and is passed to engines with their jobs."""

    def local_path(self, ref: FileRef) -> Path:
        """Returns a local file with the bytes of a reference, to be read or mapped into memory.

        A store whose files are elsewhere copies a blob into a cache first, in which it stays for some minutes at least.

        Raises:
            BlobDamaged: The store had to copy the blob, and it is missing, or does not have the bytes that were stored.
            ObjectsUnavailable: The store had to copy the blob, and cannot now.
        """

    def prepare(self, blobs: Iterable[BlobRef]) -> None:
        """Copies blobs that are small to where `local_path` finds them, several at a time; not those that are damaged.

        Raises:
            ObjectsUnavailable: The store can neither copy them now, nor store what is made of them.
        """

    def range(self, ref: FileRef, start: int, end: int) -> bytes:
        """Returns the bytes [start, end) of a file, fewer if it ends before.

        Raises:
            FileNotFoundError: There is no such file.
        """

    def stage(self) -> AbstractContextManager[tuple[StagedRef, Path]]:
        """Makes room for a new staged file.

        The block gets its reference and the path to create and write it at, and has to force it to disk. A block that
        fails leaves no file.
        """


class Blobs(Protocol):
    """A store of blobs and of the uploads that become them.

    A store on other machines raises `ObjectsUnavailable` where it cannot be asked.
    """

    @property
    def files(self) -> BlobFiles:
        """Access to the bytes, to be passed to other processes."""

    @property
    def stored_bytes(self) -> int:
        """Size of all blobs together, once `measure` has counted those of earlier processes."""

    def writer(self, ref: UploadRef | StagedRef, offset: int = 0) -> BlobWriter:
        """Opens a new or a resumed upload. Bytes of an earlier attempt behind the offset are dropped.

        Args:
            ref: Where to write.
            offset: Where the upload goes on, in bytes; 0 for a staged file.

        Raises:
            UploadOffset: The upload has fewer bytes than that.
            DiskFull: There is no room for another file.
        """

    def commit(self, staged: StagedBlob) -> None:
        """Makes a durable file a blob, durably. The file itself is gone afterwards.

        If the same bytes are stored already, they count as new: they are not collected soon. A staged file that cannot
        be committed is removed; an upload stays for its next attempt. The caller calls `keep` or `release` once it is
        decided whether a row refers to the blob.

        Raises:
            DiskFull: There is no room for it.
        """

    def store(self, files: Sequence[SmallFile]) -> Sequence[Exception | None]:
        """Makes blobs of small files, durably, with one sync for all of them.

        Each is treated like a file that is committed: the same bytes count as new, and the caller calls `keep` or
        `release` for each that was stored.

        Args:
            files: Complete files, whose digests the caller has computed.

        Returns:
            For each file the error, `DiskFull` or an `OSError`, or None if it is stored. A sync that fails is the error
            of all of its group. What is not stored leaves nothing.
        """

    def keep(self, blob: BlobRef) -> None:
        """Leaves a committed blob to the collection: a row refers to it, or may."""

    def release(self, blob: BlobRef) -> None:
        """Removes a committed blob to which no row will refer, unless it was stored before or others committed it."""

    def open(self, blob: BlobRef, offset: int) -> BlobReader:
        """Opens a blob for reading from an offset in bytes, in chunks.

        Raises:
            BlobDamaged: It is not there, or has another size.
        """

    def open_cached(self, blob: BlobRef, offset: int) -> BlobReader | None:
        """Opens a blob like `open` if that takes no waiting for another machine; otherwise returns None.

        Raises:
            BlobDamaged: It is not there, or has another size.
        """

    def examine(self, blob: BlobRef) -> BlobRef:
        """Reads all of a blob, and returns it with the checksums of its blocks. May take long.

        Raises:
            BlobDamaged: It is not there, cannot be read, or does not have the bytes that its SHA-256 is of.
        """

    def upload_size(self, ref: UploadRef) -> int:
        """Returns how many bytes of an upload are stored; 0 for an unknown one."""

    def known_size(self, ref: UploadRef) -> int:
        """Returns how many bytes of an upload are stored, as far as this process knows; does not wait."""

    def unfinished_uploads(self) -> Iterator[tuple[UploadRef, int]]:
        """Returns all uploads, with their sizes in bytes."""

    def remove_upload(self, ref: UploadRef) -> None:
        """Removes an upload, if it exists."""

    def remove_uploads(self, user_id: str) -> None:
        """Removes a user's uploads."""

    def free_bytes(self) -> int:
        """Returns how many more bytes can be stored."""

    def total_bytes(self) -> int:
        """Returns how many bytes could be stored on an empty disk; other things than blobs may be on it, too."""

    def measure(self) -> None:
        """Counts `stored_bytes`; what is stored meanwhile may be missing."""

    def sweep(self) -> None:
        """Removes staged files of earlier processes; before serving only."""

    def unsettled(self) -> Set[str]:
        """Returns the digests of small files that earlier processes may have left in memory; before serving only."""

    def recover(self, needed: Set[str]) -> int:
        """Makes small files of earlier processes durable that a crash of the machine may have damaged or lost.

        To be called before serving, and before `measure`.

        Args:
            needed: Which of the digests that `unsettled` returned are needed. The other files were removed, or no row
                has ever referred to them.

        Returns:
            How many were missing or damaged, and are there now.

        Raises:
            OSError: One cannot be read or written; all are as before.
        """

    def close(self) -> None:
        """Leaves nothing to recover, if possible; after serving only."""

    def collecting(self) -> AbstractContextManager[bool]:
        """Yields whether blobs may be collected within the block: not while a backup is made, which needs them."""

    def old(self, min_seconds: float = UNREFERENCED_SECONDS) -> list[str]:
        """Returns the digests of blobs that are old enough to be collected if no row refers to them."""

    def collect(self, digests: Iterable[str], min_seconds: float = UNREFERENCED_SECONDS) -> list[int]:
        """Removes old blobs without a row, except those that were committed again meanwhile; returns their sizes.

        Nor does it remove any that this process has committed and has neither kept nor released.
        """

    def collect_uploads(self) -> dict[UploadRef, int]:
        """Removes uploads that were not continued for a day; returns their sizes."""
