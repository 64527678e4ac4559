"""`fedround init`: a folder with a training that runs as it is."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from fedround_client.command.files import ForceOption, check_new
from fedround_client.command.output import Format, FormatOption, echo, echo_json

TEMPLATE = ("README.md", "network.py", "participant.py", "actor.py")


def init(
    folder: Annotated[Path, typer.Argument(help="The folder to write to; created if it does not exist.")],
    force: ForceOption = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Write a training of a PyTorch network, to run as it is and to change."""
    targets = [folder / name for name in TEMPLATE]
    for target in targets:
        check_new(target, force)
    folder.mkdir(parents=True, exist_ok=True)
    template = files("fedround_client") / "template"
    for target in targets:
        target.write_text((template / target.name).read_text(encoding="utf-8"), encoding="utf-8")
    if form is Format.JSON:
        echo_json({"files": [str(target) for target in targets]})
        return
    for target in targets:
        echo(str(target))
    echo(f"{targets[0]} says how to run them.", err=True)
