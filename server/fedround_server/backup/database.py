"""Copies of databases that are in use."""

import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from fedround_server.backup.layout import POSTGRES_FILE, SQLITE_FILE, BackupError
from fedround_server.store.db.connection import exporting_snapshot, is_postgres, postgres_settings, reading
from fedround_server.store.db.inspection import check_schema
from fedround_server.store.db.wal import check_log

LOG_CHECKS, LOG_CHECK_SECONDS = 5, 0.1
NAMES = {"dbname": "PGDATABASE", "user": "PGUSER"}
"""Environment variables of PostgreSQL's programs that are not PG and the name of the setting."""


@contextmanager
def copied(database: str | Path, folder: Path, pg_dump: str) -> Iterator[Path]:
    """Copies a database into a folder; within the block, the store's queries read what is in the copy.

    Args:
        database: The database: a URL of PostgreSQL, or a SQLite file.
        folder: Where to write the copy.
        pg_dump: PostgreSQL's program that dumps a database: its path or name.

    Raises:
        BackupError: It cannot be copied.
        RuntimeError: It is of another version.
        StoreUnavailable: It cannot be read.
    """
    if isinstance(database, str) and is_postgres(database):
        with reading(database), exporting_snapshot() as snapshot:
            check_schema()
            target = folder / POSTGRES_FILE
            words = ("--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}", f"--file={target}")
            run_program(pg_dump, words, database, "--pg-dump")
            _sync(target)
            yield target
    else:
        target = folder / SQLITE_FILE
        copy_sqlite(Path(database), target)
        with reading(target):
            check_schema()
            yield target


def copy_sqlite(source: Path, target: Path) -> None:
    """Copies a SQLite database in one read transaction, whoever writes to it meanwhile.

    Raises:
        BackupError: It is missing or damaged.
    """
    if not source.is_file():
        raise BackupError(f"there is no database {source}: give the --data-dir of a server, or its --database")
    os.close(os.open(target, os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o600))
    try:
        _check_log(source)
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True, timeout=30)) as database,
            closing(sqlite3.connect(target)) as copy,
        ):
            # All pages in one step: a step that follows a commit would begin anew.
            database.backup(copy)
            # A file that is complete without a log.
            copy.execute("PRAGMA journal_mode = DELETE")
            (found,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        raise BackupError(f"the database {source} cannot be copied: {error}") from error
    if found != "ok":
        raise BackupError(f"the database {source} is damaged: {found}")
    _sync(target)


def _check_log(database: Path) -> None:
    """Checks that the log of a server that was killed is whole.

    Raises:
        RuntimeError: It has fewer pages than were committed.
    """
    for attempt in range(LOG_CHECKS):
        try:
            check_log(database)
        except RuntimeError:
            # A running server may have begun its log anew while it was read.
            if attempt == LOG_CHECKS - 1:
                raise
            time.sleep(LOG_CHECK_SECONDS)
        else:
            return


def load_dump(dump: Path, url: str, pg_restore: str) -> None:
    """Loads a dump into an empty database of PostgreSQL.

    Raises:
        BackupError: It cannot be loaded.
        StoreUnavailable: The database cannot be read.
    """
    words = ("--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction", str(dump))
    name = postgres_settings(url)["dbname"]
    run_program(pg_restore, (f"--dbname={name}", *words), url, "--pg-restore")


def run_program(program: str, words: tuple[str, ...], url: str, option: str) -> None:
    """Runs a program of PostgreSQL, which gets the URL in its environment: others can see arguments.

    Raises:
        BackupError: It is missing, or fails.
    """
    path = shutil.which(program)
    if path is None:
        raise BackupError(
            f"{program} is not installed here: install the client programs of PostgreSQL, of the server's version or"
            f" newer, or name the program with {option}"
        )
    settings = {NAMES.get(name, f"PG{name.upper()}"): str(value) for name, value in postgres_settings(url).items()}
    done = subprocess.run(  # noqa: S603 -- no shell
        [path, *words],
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BackupError(f"{program} failed: {done.stderr.strip()}")


def _sync(path: Path) -> None:
    path.chmod(0o600)
    with path.open("rb") as file:
        os.fsync(file.fileno())
