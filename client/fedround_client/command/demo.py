"""`fedround demo`: a complete training on this machine."""

from __future__ import annotations

import typer

from fedround_client.command.serve import require

_MODULES = ("fedround_server", "matplotlib", "peewee", "sklearn", "torch")


def demo(context: typer.Context) -> None:
    """Watch five clients train a model together on this machine."""
    require("demo", "demo", _MODULES)
    # Imports torch, which takes seconds, and which the other commands do not need.
    from fedround_client.demo.run import main

    raise typer.Exit(main(context.args))
