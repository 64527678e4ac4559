"""`fedround convert`: convert a PyTorch state dict to a safetensors file, on the user's own machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any

import grpc
import typer

from fedround_client.command.failures import fail
from fedround_client.command.files import ForceOption, check_new
from fedround_client.command.output import Format, FormatOption, echo, echo_json
from fedround_client.command.serve import require
from fedround_client.prefixes import strip_prefix, wrapper_prefix
from fedround_client.safetensors_header import TORCH_METADATA
from fedround_client.state_dict import WRAPPERS, flatten, is_optimizer_state
from fedround_client.tensor_types import TensorError
from fedround_client.tensors import to_safetensors

MAX_NAMED = 20
"""How many dropped entries are named."""


def convert(
    state_dict: Annotated[Path, typer.Argument(help="A file written by torch.save.", exists=True, dir_okay=False)],
    output: Annotated[Path | None, typer.Argument(help="The file to write; NAME.safetensors by default.")] = None,
    force: ForceOption = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Convert a PyTorch state dict to safetensors, the format that the server accepts.

    Of a checkpoint it takes the state dict. It removes the prefixes module. (DataParallel) and _orig_mod.
    (torch.compile) if all names have them, and says what it took, removed and dropped.
    """
    require("convert", "server", ("torch",))
    target = output or state_dict.with_suffix(".safetensors")
    if target.resolve() == state_dict.resolve():
        fail("FILE", f"{target} is the file to convert: name another one for the result")
    check_new(target, force)
    selection = select_tensors(_load(state_dict))
    content = to_safetensors(selection.tensors, TORCH_METADATA)
    target.write_bytes(content)
    if form is Format.JSON:
        echo_json({"file": str(target), "size_bytes": len(content)} | selection.summary(), indent=None)
    else:
        echo(selection.description(), err=True)
        echo(str(target))


@dataclass(frozen=True)
class Selection:
    """The tensors of a file that are converted.

    Attributes:
        tensors: The tensors by name.
        key: The key of the checkpoint that has them, with slashes between nested keys; empty for the whole file.
        prefix: What was removed from the names of all of them.
        dropped: What is not converted: the types of the values by name.
    """

    tensors: Mapping[str, Any]
    key: str
    prefix: str
    dropped: Mapping[str, str]

    def summary(self) -> dict[str, Any]:
        """Returns what was taken and dropped, for programs."""
        return {
            "num_tensors": len(self.tensors),
            "taken_key": self.key,
            "removed_prefix": self.prefix,
            "dropped": sorted(self.dropped),
        }

    def description(self) -> str:
        """Returns what was taken and dropped, for people."""
        count = len(self.tensors)
        text = f"Took {count} tensor{'s' if count > 1 else ''}" + (f" of {self.key!r}." if self.key else ".")
        if self.prefix:
            text += f" Removed the prefix {self.prefix!r} from their names."
        if self.dropped:
            named = [f"{name!r} ({kind})" for name, kind in list(self.dropped.items())[:MAX_NAMED]]
            more = len(self.dropped) - len(named)
            text += f" Dropped {', '.join(named)}" + (f" and {more} more." if more else ".")
        return text


def select_tensors(content: Any) -> Selection:
    """Returns the tensors of what a file holds: a state dict, or a checkpoint that has one.

    Raises:
        TensorError: It holds no tensors, or the state of an optimizer.
    """
    keys: list[str] = []
    dropped: dict[str, str] = {}
    while key := _wrapper(content):
        dropped |= {str(name): type(value).__name__ for name, value in content.items() if name != key}
        content = content[key]
        keys.append(key)
    if not isinstance(content, Mapping):
        raise TensorError(f"The file holds a {type(content).__name__}, not a state dict: save network.state_dict().")
    if not is_optimizer_state(content):
        optimizers = [
            name for name, value in content.items() if isinstance(value, Mapping) and is_optimizer_state(value)
        ]
        dropped |= {str(name): "the state of an optimizer" for name in optimizers}
        content = {name: value for name, value in content.items() if name not in optimizers}
    flat = flatten(content)
    tensors = {name: value for name, value in flat.items() if hasattr(value, "__array__")}
    dropped |= {name: type(value).__name__ for name, value in flat.items() if name not in tensors}
    if not tensors:
        raise TensorError(f"The file has no tensors, only {', '.join(map(repr, list(dropped)[:MAX_NAMED]))}.")
    prefix = wrapper_prefix(tensors)
    return Selection(strip_prefix(tensors, prefix) if prefix else tensors, "/".join(keys), prefix, dropped)


def _wrapper(content: Any) -> str | None:
    """Returns the key under which a checkpoint has its state dict; None if it has none."""
    keys = WRAPPERS if isinstance(content, Mapping) else ()
    return next((key for key in keys if isinstance(content.get(key), Mapping)), None)


def _load(path: Path) -> Any:
    import torch

    try:
        # weights_only is hardening, not a security boundary: a hostile file can still use up all memory.
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file may cause any exception in the parser
        # torch's own text recommends ways to load it that may run code of the file.
        refused = "it holds other objects than tensors, or torch.save has not written it"
        why = refused if isinstance(error, UnpicklingError) else str(error).partition("\n")[0]
        fail(
            "MODEL_FORMAT",
            f"{path} is not a plain state dict (save model.state_dict(), not the model): {why}",
            code=grpc.StatusCode.INVALID_ARGUMENT,
        )
