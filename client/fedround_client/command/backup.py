"""`fedround backup` and `fedround restore`: run the server's own programs in place of this process."""

from __future__ import annotations

import typer

from fedround_client.command.serve import replace_process, require

_MODULES = ("fedround_server", "peewee", "pydantic_settings")


def backup(context: typer.Context) -> None:
    """Back up a server, running or not, or verify a backup; `fedround backup --help` lists the options."""
    _run("backup", context.args)


def restore(context: typer.Context) -> None:
    """Restore a backup into a new data directory; `fedround restore --help` lists the options."""
    _run("restore", context.args)


def _run(command: str, words: list[str]) -> None:
    require(command, "server", _MODULES)
    replace_process("fedround_server.backup", command, *words)
