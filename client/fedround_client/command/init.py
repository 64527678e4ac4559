"""`fedround init`: a folder with a training that runs as it is."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from fedround_client.command.session import fail

TEMPLATE = ("README.md", "network.py", "participant.py", "actor.py")


def init(
    folder: Annotated[Path, typer.Argument(help="The folder to create, or an existing one without such files.")],
) -> None:
    """Create a folder with a training of a PyTorch network, to run as it is and to change."""
    existing = [name for name in TEMPLATE if (folder / name).exists()]
    if existing:
        fail(f"FILE: {folder} has {' and '.join(existing)} already: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    template = files("fedround_client") / "template"
    for name in TEMPLATE:
        (folder / name).write_text((template / name).read_text(encoding="utf-8"), encoding="utf-8")
        typer.echo(str(folder / name))
    typer.echo(f"{folder / 'README.md'} says how to run them.", err=True)
