"""`fedround serve`: becomes the server."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import typer

from fedround_client.command.session import fail

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

_NEEDED = ("fedround_server", "peewee", "pydantic_settings", "structlog", "torch")


def serve(context: typer.Context) -> None:
    """Run a server; `fedround serve --help` lists its options."""
    require("serve", "server", _NEEDED)
    sys.stdout.flush()
    # The server wants no token of yours, and others may read its environment.
    os.environ.pop("FEDROUND_TOKEN", None)
    # -P: a queue.py in the folder where somebody starts it is none of the server's modules.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "fedround_server", *context.args])  # noqa: S606 -- no shell wanted


def require(command: str, extra: str, modules: tuple[str, ...]) -> None:
    """Fails with what to install unless all modules can be found; imports none of them."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        fail(
            f"EXTRA_MISSING: `fedround {command}` needs {', '.join(missing)}, not installed here."
            f' Install it with: pip install "fedround[{extra}]"'
        )
