"""`fedround demo`: a whole training on this machine."""

from __future__ import annotations

import typer

from fedround_client.command.serve import require

_NEEDED = ("fedround_server", "matplotlib", "peewee", "sklearn", "torch")


def demo(context: typer.Context) -> None:
    """Watch five clients train a model together on this machine."""
    require("demo", "demo", _NEEDED)
    # Imports torch, which the other commands do without.
    from fedround_client.demo.run import main

    raise typer.Exit(main(context.args))
