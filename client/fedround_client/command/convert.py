"""`fedround convert`: convert a PyTorch state dict to a safetensors file, on the user's own machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer

from fedround_client.command.failures import fail
from fedround_client.command.files import ForceOption, check_new
from fedround_client.command.output import Format, FormatOption, echo, echo_json
from fedround_client.command.serve import require
from fedround_client.safetensors_header import TORCH_METADATA
from fedround_client.tensor_types import TensorError
from fedround_client.tensors import to_safetensors

_WRAPPERS = ("state_dict", "model_state_dict", "model")


def convert(
    state_dict: Annotated[Path, typer.Argument(help="A file written by torch.save.", exists=True, dir_okay=False)],
    output: Annotated[Path | None, typer.Argument(help="The file to write; NAME.safetensors by default.")] = None,
    force: ForceOption = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Convert a PyTorch state dict to safetensors, the format that the server accepts."""
    require("convert", "server", ("torch",))
    target = output or state_dict.with_suffix(".safetensors")
    if target.resolve() == state_dict.resolve():
        fail("FILE", f"{target} is the file to convert: name another one for the result")
    check_new(target, force)
    content = to_safetensors(_tensors(_load(state_dict)), TORCH_METADATA)
    target.write_bytes(content)
    if form is Format.JSON:
        echo_json({"file": str(target), "size_bytes": len(content)}, indent=None)
    else:
        echo(str(target))


def _load(path: Path) -> Any:
    import torch

    try:
        # weights_only is hardening, not a security boundary: a hostile file can still use up all memory.
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file may cause any exception in the parser
        why = str(error).partition("\n")[0]
        fail(
            "MODEL_FORMAT",
            f"{path} is not a plain state dict (save model.state_dict(), not the model): {why}",
            code=grpc.StatusCode.INVALID_ARGUMENT,
        )


def _tensors(content: Any) -> Mapping[str, Any]:
    """Returns the state dict of a file, which may be part of a checkpoint."""
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise TensorError(f"The file holds a {type(content).__name__}, not a state dict.")
    return content
