"""`fedround objects`: run the server's own program in place of this process."""

from __future__ import annotations

import typer

from fedround_client.command.serve import replace_process, require

_MODULES = ("fedround_server", "pydantic_settings")


def objects(context: typer.Context) -> None:
    """Copy a server's files into an object store, or back; `fedround objects copy --help` lists the options."""
    require("objects", "server", _MODULES)
    replace_process("fedround_server.objects", *context.args)
