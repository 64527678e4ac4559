"""`fedround database`: run the server's own program in place of this process."""

from __future__ import annotations

import typer

from fedround_client.command.serve import replace_process, require

_MODULES = ("fedround_server", "peewee")


def database(context: typer.Context) -> None:
    """Copy a server's SQLite database to PostgreSQL; `fedround database copy --help` lists the options."""
    require("database", "server", _MODULES)
    replace_process("fedround_server.database", *context.args)
