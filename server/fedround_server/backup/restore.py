"""Verifies backups, and restores them."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fedround_server.backup.database import load_dump
from fedround_server.backup.files import BLOB_MODE, Copier
from fedround_server.backup.layout import SQLITE_FILE, Backup, BackupError, Manifest, file_sha256, object_path
from fedround_server.host.folder import make_private
from fedround_server.host.sync import sync_folder
from fedround_server.store import Store
from fedround_server.store.db.connection import is_empty

DATABASE_MODE = 0o600


@dataclass(frozen=True)
class Verified:
    """What a verification has found.

    Attributes:
        snapshots: The names of the snapshots.
        num_files: How many files were read.
        problems: What is wrong, one sentence for each file.
    """

    snapshots: list[str]
    num_files: int
    problems: list[str]


def verify(root: Path) -> Verified:
    """Reads all files of a backup.

    Raises:
        BackupError: It is no backup.
    """
    backup = Backup(root)
    names = backup.names()
    expected = {object_path(path.name): path.name for path in backup.blobs()}
    if not names and not expected:
        raise BackupError(f"{root} is no backup: it has no snapshots/ and no objects/")
    problems = []
    for name in names:
        try:
            manifest = backup.manifest(name)
            expected |= backup.sums(name)
            problems += [f"snapshot {name}: {digest} was damaged or missing then" for digest in manifest.damaged]
        except BackupError as error:
            problems.append(str(error))
    for path, digest in sorted(expected.items()):
        try:
            found = file_sha256(root / path)
        except OSError as error:
            problems.append(f"{root / path}: {error.strerror or error}")
        else:
            if found != digest:
                problems.append(f"{root / path} is damaged: its SHA-256 is {found}")
    return Verified(names, len(expected), problems)


def restore(root: Path, data_dir: Path, *, snapshot: str, database: str, pg_restore: str) -> Manifest | None:
    """Restores a backup into a new data directory; of PostgreSQL into an empty database, too.

    Every file is verified while it is copied. The database is complete before it gets its name, so that no server
    starts on half of a backup.

    Args:
        root: The backup.
        data_dir: The new data directory, which is missing or empty.
        snapshot: The name of a snapshot; empty for the latest.
        database: The URL of PostgreSQL; empty for SQLite.
        pg_restore: PostgreSQL's program that loads a dump.

    Returns:
        The manifest of the snapshot; None if the backup has only files, and the database was restored before.

    Raises:
        BackupError: It cannot be restored, or a file is damaged.
        StoreUnavailable: The database does not answer.
        OSError: A file cannot be read or written.
    """
    backup = Backup(root)
    if data_dir.is_dir() and any(data_dir.iterdir()):
        raise BackupError(f"{data_dir} is not empty: choose another folder, which need not exist")
    if not snapshot and not backup.names() and database and any(backup.blobs()):
        _copy(backup, data_dir, {object_path(path.name): path.name for path in backup.blobs()})
        _begin_history(database, None)
        return None
    name = backup.find(snapshot)
    manifest = backup.manifest(name)
    if (manifest.database == "postgresql") != bool(database):
        raise BackupError(
            "the backup is of a server on PostgreSQL: name an empty database with --database"
            if manifest.database == "postgresql"
            else "the backup is of a server on SQLite: leave out --database, and unset FEDROUND_DATABASE"
        )
    if database and not is_empty(database):
        raise BackupError("the database is not empty: create another one, and name it with --database")
    copies = {path: digest for path, digest in backup.sums(name).items() if path.startswith("objects/")}
    (copied_database,) = (path for path in backup.sums(name) if path not in copies)
    _copy(backup, data_dir, copies)
    digest = backup.sums(name)[copied_database]
    if database:
        if file_sha256(root / copied_database) != digest:
            raise BackupError(f"{root / copied_database} is damaged: use another snapshot")
        load_dump(root / copied_database, database, pg_restore)
        _begin_history(database, manifest)
    else:
        part = data_dir / f"{SQLITE_FILE}.part"
        if not Copier().copy(root / copied_database, part, digest, DATABASE_MODE):
            raise BackupError(f"{root / copied_database} is damaged or missing: use another snapshot")
        _begin_history(part, manifest)
        part.rename(data_dir / SQLITE_FILE)
    sync_folder(data_dir)
    return manifest


def _copy(backup: Backup, data_dir: Path, files: dict[str, str]) -> None:
    make_private(data_dir)
    data_dir.chmod(0o700)
    make_private(data_dir / "objects")
    copier = Copier()
    for path, digest in files.items():
        if not copier.copy(backup.root / path, data_dir / path, digest, BLOB_MODE):
            raise BackupError(
                f"{backup.root / path} is damaged or missing: use another snapshot, or a copy of that file; remove"
                f" {data_dir} before you restore again"
            )
    copier.sync()
    sync_folder(data_dir)


def _begin_history(database: str | Path, manifest: Manifest | None) -> None:
    """Migrates a restored database, and lets its logs begin new histories."""
    taken = None if manifest is None else datetime.fromisoformat(manifest.time)
    with Store(database) as store:
        asyncio.run(store.backups.restored(taken))
