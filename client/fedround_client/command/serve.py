"""`fedround serve`: run the server in place of this process."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import typer

from fedround_client.command.failures import fail

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

_MODULES = ("fedround_server", "peewee", "prometheus_client", "pydantic_settings", "structlog", "torch")


def serve(context: typer.Context) -> None:
    """Run a server; `fedround serve --help` lists its options."""
    require("serve", "server", _MODULES)
    replace_process("fedround_server", *context.args)


def replace_process(module: str, *words: str) -> None:
    """Runs a module of the server, with these arguments, in place of this process."""
    sys.stdout.flush()
    # The server does not need the user's token, and its environment may be visible to others.
    os.environ.pop("FEDROUND_TOKEN", None)
    # -P: do not import modules from the working directory, for example a queue.py.
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *words])  # noqa: S606 -- without a shell


def require(command: str, extra: str, modules: tuple[str, ...]) -> None:
    """Fails unless this machine can run a server: with the extra to install, or if it is not a POSIX system."""
    if find_spec("fcntl") is None:
        fail(
            "POSIX_MISSING",
            f"`fedround {command}` needs a POSIX system, such as Linux or macOS. On Windows, run it in WSL or in a"
            " container; participants and the other commands run on Windows, too.",
        )
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        fail(
            "EXTRA_MISSING",
            f"`fedround {command}` needs {', '.join(missing)}, not installed here."
            f' Install it with: pip install "fedround[{extra}]"',
        )
