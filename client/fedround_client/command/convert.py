"""`fedround convert`: a PyTorch state dict becomes a safetensors file, on the user's own machine."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fedround_client.command.serve import require
from fedround_client.command.session import fail
from fedround_client.tensors import TensorError, to_safetensors

_WRAPPERS = ("state_dict", "model_state_dict", "model")


def convert(
    state_dict: Annotated[Path, typer.Argument(help="A file that torch.save wrote.", exists=True, dir_okay=False)],
    output: Annotated[Path | None, typer.Argument(help="By default the same name with .safetensors.")] = None,
) -> None:
    """Convert a PyTorch state dict to safetensors, which is what the server takes."""
    require("convert", "server", ("torch",))
    import torch

    try:
        # On other people's files this is hardening, not a boundary: it can still take all the memory there is.
        content = torch.load(state_dict, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        why = str(error).partition("\n")[0]
        fail(f"MODEL_FORMAT: {state_dict} is not a plain state dict (save model.state_dict(), not the model): {why}")
    target = output or state_dict.with_suffix(".safetensors")
    target.write_bytes(to_safetensors(_tensors(content)))
    typer.echo(str(target))


def _tensors(content: Any) -> Mapping[str, Any]:
    """Takes a state dict out of the checkpoint that it may be wrapped in."""
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise TensorError(f"The file holds a {type(content).__name__}, not a state dict.")
    return content
