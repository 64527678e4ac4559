"""`fedround database`: run the server's own program in place of this process."""

from __future__ import annotations

import os
import sys

import typer

from fedround_client.command.serve import require

_MODULES = ("fedround_server", "peewee")


def database(context: typer.Context) -> None:
    """Copy a server's SQLite database to PostgreSQL; `fedround database copy --help` lists the options."""
    require("database", "server", _MODULES)
    sys.stdout.flush()
    os.environ.pop("FEDROUND_TOKEN", None)
    # -P: do not import modules from the working directory, for example a queue.py.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "fedround_server.database", *context.args])  # noqa: S606 -- without a shell
