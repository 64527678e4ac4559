"""Makes a backup of a server, which goes on meanwhile."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedround_server.backup.database import copied
from fedround_server.backup.files import Copier
from fedround_server.backup.layout import (
    FORMAT,
    NEW,
    OLD,
    POSTGRES_FILE,
    Backup,
    BackupError,
    Manifest,
    file_sha256,
    object_path,
    write_snapshot_files,
)
from fedround_server.host.file_lock import BACKUP_LOCK, beside_objects, shared, try_exclusive
from fedround_server.host.folder import make_private
from fedround_server.host.sync import sync_folder
from fedround_server.store.queries.backup import count_objects, find_digests

NAME = "%Y%m%dT%H%M%S.%fZ"
"""Names of snapshots, which sort by time."""


@dataclass(frozen=True)
class Taken:
    """What a backup has done.

    Attributes:
        snapshot: The name of the new snapshot; empty if only files were copied.
        manifest: Its manifest; None if only files were copied.
        num_copied: How many files were copied; the others were there.
        bytes_copied: Their size together, in bytes.
        damaged: The digests of files that are damaged or missing on the disk of the server, and were not copied.
    """

    snapshot: str
    manifest: Manifest | None
    num_copied: int
    bytes_copied: int
    damaged: list[str]


def take(
    data_dir: Path, database: str | Path, output: Path, *, link: bool, keep: int, files_only: bool, pg_dump: str
) -> Taken:
    """Makes a backup, or adds a snapshot to one.

    Args:
        data_dir: The data directory of the server.
        database: Its database: a URL of PostgreSQL, or a SQLite file.
        output: The backup, which may exist.
        link: Make hard links to the files of the data directory instead of copies.
        keep: How many snapshots to keep, with the new one.
        files_only: Copy all files, and not the database.
        pg_dump: PostgreSQL's program that dumps a database.

    Raises:
        BackupError: It cannot be made; the snapshots that were there are still good.
        StoreUnavailable: The database does not answer.
        OSError: A file cannot be read or written.
    """
    if not (data_dir / "objects").is_dir():
        raise BackupError(f"{data_dir} is no data directory of a server: it has no objects/")
    if output.resolve().is_relative_to(data_dir.resolve()):
        raise BackupError(f"{output} is inside of the data directory: choose another place, best on another disk")
    backup = Backup(output)
    make_private(output)
    with _alone(output):
        if files_only:
            return _take_files(data_dir, backup, link)
        with shared(beside_objects(data_dir, BACKUP_LOCK)):
            taken = _take_snapshot(data_dir, database, backup, link, pg_dump)
        _prune(backup, keep)
        return taken


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    with try_exclusive(output / ".lock") as is_free:
        if not is_free:
            raise BackupError(f"another backup to {output} is being made: wait for its end")
        yield


def _take_files(data_dir: Path, backup: Backup, link: bool) -> Taken:
    if backup.names():
        raise BackupError(
            f"{backup.root} has snapshots of a database: choose another folder for a backup of files only"
        )
    copier = Copier(link=link)
    damaged = []
    with shared(beside_objects(data_dir, BACKUP_LOCK)):
        for path in sorted((data_dir / "objects").glob("*/*")):
            if not copier.copy(path, backup.root / object_path(path.name), path.name):
                damaged.append(path.name)
    copier.sync()
    return Taken("", None, copier.num_copied, copier.bytes_copied, damaged)


def _take_snapshot(data_dir: Path, database: str | Path, backup: Backup, link: bool, pg_dump: str) -> Taken:
    make_private(backup.snapshots)
    folder = backup.snapshots / NEW
    shutil.rmtree(folder, ignore_errors=True)
    make_private(folder)
    time = datetime.now(UTC)
    with copied(database, folder, pg_dump) as copy:
        digests = find_digests()
        counts = count_objects()
    copier, damaged, sums, size = Copier(link=link), [], [], 0
    for digest in digests:
        path = object_path(digest)
        if copier.copy(data_dir / path, backup.root / path, digest):
            sums.append((digest, path))
            size += (backup.root / path).stat().st_size
        else:
            damaged.append(digest)
    copier.sync()
    name = time.strftime(NAME)
    num_files = len(sums)
    sums.append((file_sha256(copy), f"snapshots/{name}/{copy.name}"))
    manifest = Manifest(
        format=FORMAT,
        fedround=_version(),
        time=time.isoformat(),
        database="postgresql" if copy.name == POSTGRES_FILE else "sqlite",
        sums_sha256="",
        num_files=num_files,
        size_bytes=size,
        trainings=counts.trainings,
        num_models=counts.models,
        num_users=counts.users,
        damaged=damaged,
    )
    write_snapshot_files(folder, sums, manifest)
    folder.rename(backup.snapshots / name)
    sync_folder(backup.snapshots)
    sync_folder(backup.root)
    return Taken(name, manifest, copier.num_copied, copier.bytes_copied, damaged)


def _prune(backup: Backup, keep: int) -> None:
    """Removes the oldest snapshots, and files that none of the others has."""
    names = backup.names()
    old = backup.snapshots / OLD
    shutil.rmtree(old, ignore_errors=True)
    for name in names[:-keep]:
        (backup.snapshots / name).rename(old)
        sync_folder(backup.snapshots)
        shutil.rmtree(old)
    needed = {path for name in backup.names() for path in backup.sums(name)}
    for path in backup.objects.glob("*/*"):
        if str(path.relative_to(backup.root)) not in needed:
            path.unlink()


def _version() -> str:
    try:
        return version("fedround")
    except PackageNotFoundError:
        return "unknown"
