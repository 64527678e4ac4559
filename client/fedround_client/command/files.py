"""Files that commands write: one rule for those that exist already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import grpc
import typer

from fedround_client.command.failures import fail
from fedround_client.exit_codes import ExitCode

ForceOption: TypeAlias = Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")]


def check_new(path: Path, force: bool) -> None:
    """Fails if the file to write exists, unless it may be overwritten. Called before anything else is done."""
    if path.exists() and not force:
        fail(
            "FILE_EXISTS",
            f"{path} exists: use --force to overwrite it, or give another name",
            code=grpc.StatusCode.ALREADY_EXISTS,
            metadata={"file": str(path)},
            exit_code=ExitCode.USAGE,
        )
