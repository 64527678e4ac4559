"""What a backup consists of.

    BACKUP/objects/AA/SHA256            files, shared by all snapshots, as in the data directory
    BACKUP/snapshots/NAME/              one for each time that a backup was made, named after it
        fedround.db or fedround.dump    the database: a SQLite file, or a dump of PostgreSQL
        SHA256SUMS                      the files of the snapshot, for `sha256sum --check` in BACKUP
        manifest.json                   a `Manifest`

A snapshot is renamed into place when all that it refers to is on disk, so it is complete if it exists. A backup of
files only has no snapshots.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path

from fedround_server.host.sync import sync_folder

FORMAT = 1
SQLITE_FILE, POSTGRES_FILE = "fedround.db", "fedround.dump"
MANIFEST, SUMS = "manifest.json", "SHA256SUMS"
NEW, OLD = ".new", ".old"
"""Folders of a snapshot that is being made, or removed."""
READ_BYTES = 1 << 20


class BackupError(RuntimeError):
    """A backup cannot be made, read or restored; the message says what to do."""


@dataclass(frozen=True)
class Manifest:
    """What a snapshot contains.

    Attributes:
        format: The version of this layout.
        fedround: The version of fedround that made it.
        time: When the database was copied, in ISO 8601 and UTC.
        database: "sqlite" or "postgresql".
        sums_sha256: The SHA-256 of SHA256SUMS.
        num_files: How many files it has besides the database.
        size_bytes: Their size together, in bytes.
        trainings: How many trainings there are, by state.
        num_models: How many models there are.
        num_users: How many users there are.
        damaged: The digests of files that were damaged or missing on the disk of the server, and are not in the backup.
    """

    format: int
    fedround: str
    time: str
    database: str
    sums_sha256: str
    num_files: int
    size_bytes: int
    trainings: dict[str, int]
    num_models: int
    num_users: int
    damaged: list[str]


class Backup:
    """A backup on disk."""

    def __init__(self, root: Path) -> None:
        """Makes nothing."""
        self.root = root
        self.objects = root / "objects"
        self.snapshots = root / "snapshots"

    def names(self) -> list[str]:
        """Returns the names of the snapshots, the oldest first."""
        if not self.snapshots.is_dir():
            return []
        return sorted(path.name for path in self.snapshots.iterdir() if not path.name.startswith("."))

    def find(self, name: str = "") -> str:
        """Returns the name of a snapshot, the latest by default.

        Raises:
            BackupError: There is none.
        """
        names = self.names()
        if name and name not in names:
            raise BackupError(f"{self.root} has no snapshot {name}: it has {', '.join(names) or 'none'}")
        if not names:
            raise BackupError(f"{self.root} is no backup of a server with its database: it has no snapshots")
        return name or names[-1]

    def manifest(self, name: str) -> Manifest:
        """Reads the manifest of a snapshot.

        Raises:
            BackupError: It is damaged, or of a newer version.
        """
        path = self.snapshots / name / MANIFEST
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] > FORMAT:
                raise BackupError(f"{path} was made by fedround {data['fedround']}: use that version, or a newer one")
            return Manifest(**{field.name: data[field.name] for field in fields(Manifest)})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BackupError(f"{path} cannot be read: {error}") from error

    def sums(self, name: str) -> dict[str, str]:
        """Reads the digests of the files of a snapshot, by their paths relative to the backup.

        Raises:
            BackupError: The list is damaged.
        """
        path = self.snapshots / name / SUMS
        try:
            text = path.read_bytes()
        except OSError as error:
            raise BackupError(f"{path} cannot be read: {error}") from error
        if sha256(text).hexdigest() != self.manifest(name).sums_sha256:
            raise BackupError(f"{path} is damaged: use another snapshot")
        return {file: digest for digest, file in (line.split("  ", 1) for line in text.decode().splitlines())}

    def blobs(self) -> Iterator[Path]:
        """Yields the files below objects/."""
        if self.objects.is_dir():
            yield from sorted(path for path in self.objects.glob("*/*") if not path.name.startswith("."))


def object_path(digest: str) -> str:
    """Returns where a file is, relative to a backup and to a data directory."""
    return f"objects/{digest[:2]}/{digest}"


def write_snapshot_files(folder: Path, sums: Iterable[tuple[str, str]], manifest: Manifest) -> None:
    """Writes the list of files and the manifest of a snapshot, durably.

    Args:
        folder: The folder of the snapshot.
        sums: The digests and the paths of its files.
        manifest: Its manifest, without `sums_sha256`.
    """
    text = "".join(f"{digest}  {path}\n" for digest, path in sums).encode()
    data = asdict(manifest) | {"sums_sha256": sha256(text).hexdigest()}
    for name, content in ((SUMS, text), (MANIFEST, json.dumps(data, indent=2).encode() + b"\n")):
        descriptor = os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    sync_folder(folder)


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    digest = sha256()
    with path.open("rb", buffering=0) as file:
        while data := file.read(READ_BYTES):
            digest.update(data)
    return digest.hexdigest()
