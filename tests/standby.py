"""A synchronous standby of an embedded PostgreSQL server, which can take its place."""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

import psycopg

from calls import until
from postgres import Postgres, execute, program

OWNER = "pgserver" if os.geteuid() == 0 else None
"""The user that runs PostgreSQL, which does not run as root; made by the package of the embedded one."""


class Standby:
    """Follows a primary from the beginning of its `with` block. Each commit there waits until it is here, too."""

    def __init__(self, folder: Path, primary: Postgres) -> None:
        """Starts nothing yet. The folder must not exist."""
        self._folder = folder
        self._primary = primary

    def __enter__(self) -> Self:
        self._folder.mkdir(mode=0o700)
        if OWNER is not None:
            shutil.chown(self._folder, OWNER)
        # The primary's socket lies among its data, which are copied.
        data = self._folder / "data"
        (socket,) = parse_qs(urlsplit(self._primary.uri).query)["host"]
        subprocess.run(
            [program("pg_basebackup"), "-h", socket, "-U", "postgres", "-D", data, "-R", "-c", "fast"],
            check=True,
            capture_output=True,
            user=OWNER,
        )
        self._process = subprocess.Popen(
            [program("postgres"), "-D", data, "-k", self._folder, "-h", ""],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=OWNER,
        )
        execute(self._primary.uri, "ALTER SYSTEM SET synchronous_standby_names = '*'")
        execute(self._primary.uri, "SELECT pg_reload_conf()")
        with psycopg.connect(self._primary.uri, autocommit=True) as connection:
            state = "SELECT sync_state FROM pg_stat_replication"
            until(lambda: connection.execute(state).fetchall() == [("sync",)])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # PostgreSQL calls this its immediate shutdown.
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()

    def url(self, database: str) -> str:
        """Returns the URL of a database that leads to the primary, and to this server once it has taken its place."""
        parts = urlsplit(database)
        (socket,) = parse_qs(parts.query)["host"]
        return f"postgresql://{parts.path}?user=postgres&host={socket},{self._folder}&target_session_attrs=read-write"

    def promote(self) -> None:
        """Takes the place of the primary, which must have ended."""
        with psycopg.connect(f"host={self._folder} user=postgres dbname=postgres", autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")
