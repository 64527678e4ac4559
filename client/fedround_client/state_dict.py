"""What a model is: state dicts and model files, and what to write instead of what is neither."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from fedround_client.safetensors_header import PREFIX
from fedround_client.tensor_types import TensorError

MODEL = "A model is a dict of arrays by name, such as network.state_dict(), or the path of a safetensors file"

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""The keys under which checkpoints usually have the state dict."""

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def flatten(state: object) -> dict[str, Any]:
    """Returns the values of a state dict by name; the names of nested dicts are joined by slashes.

    Raises:
        TensorError: It is no state dict, is empty, or is the state of an optimizer.
    """
    if not isinstance(state, Mapping):
        raise not_a_model(state)
    flat: dict[str, Any] = {}
    _flatten(state, "", flat)
    if not flat:
        raise TensorError(f"The state dict is empty. {MODEL}, and has at least one tensor.")
    return flat


def _flatten(state: Mapping[Any, Any], prefix: str, flat: dict[str, Any]) -> None:
    """Adds the values of a state dict, whose names begin with a prefix."""
    if is_optimizer_state(state):
        what = repr(prefix[:-1]) if prefix else "This"
        raise TensorError(f"{what} is the state of an optimizer. {MODEL}: pass that of the network only.")
    for key, value in state.items():
        if not isinstance(key, str):
            raise TensorError(f"The key {key!r} is not a string: the names of a state dict are strings.")
        name = prefix + key
        if isinstance(value, Mapping):
            _flatten(value, f"{name}/", flat)
        elif name in flat:
            raise TensorError(f"The state dict has two tensors with the name {name!r}: rename one of them.")
        else:
            flat[name] = value


def is_optimizer_state(state: Mapping[Any, Any]) -> bool:
    """Returns whether this is the state dict of a torch optimizer."""
    return {"state", "param_groups"} <= state.keys()


def not_an_array(name: str, value: object) -> TensorError:
    """Returns the error for a value of a state dict that is no array."""
    return TensorError(
        f"{name!r} is a {type(value).__name__}, not an array. {MODEL}: leave out what is no array; of a checkpoint pass"
        " the state dict only."
    )


def not_a_model(value: object) -> TensorError:
    """Returns the error for what is neither a state dict nor a path, with what to write instead."""
    return TensorError(f"{MODEL}; this is a {type(value).__name__}: {_advice(value)}.")


def _advice(value: object) -> str:
    if isinstance(value, (str, PathLike)):
        return "pass its tensors here, as from_safetensors reads them"
    if hasattr(value, "state_dict"):
        return (
            "pass that of the network: model.state_dict()"
            if hasattr(value, "param_groups")
            else "pass model.state_dict()"
        )
    if hasattr(value, "get_weights"):
        return "name its weights: {weight.path: weight for weight in model.weights}"
    if isinstance(value, (list, tuple)):
        return "give each array a name: {str(number): array for number, array in enumerate(arrays)}"
    if hasattr(value, "__next__"):
        return "pass a dict: network.state_dict()"
    if hasattr(value, "__array__") or hasattr(value, "__dlpack__"):
        return 'give the array a name: {"weight": array}'
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "write the file to the disk, and pass its path"
    return "pass one of these"


def model_path(model: str | PathLike[str]) -> Path:
    """Returns the path of a model file, after a look at its first bytes.

    Raises:
        FileNotFoundError, IsADirectoryError: There is no such file; the message says what a model is.
        TensorError: The file is a pickle, or clearly no safetensors file for another reason.
        OSError: The file cannot be read.
    """
    path = Path(model)
    try:
        with path.open("rb") as file:
            start, size = file.read(PREFIX + 1), os.fstat(file.fileno()).st_size
    except (FileNotFoundError, IsADirectoryError) as error:
        raise type(error)(error.errno, f"There is no such file. {MODEL}", str(path)) from None
    length = int.from_bytes(start[:PREFIX], "little")
    if start[PREFIX:] == b"{" and length <= size - PREFIX:
        return path
    if start.startswith(_PICKLE_STARTS):
        raise TensorError(
            f"{path} is a pickle, as torch.save writes it, not a safetensors file: convert it with `fedround convert"
            f" {path}`, or pass the state dict that torch.load returns."
        )
    raise TensorError(f"{path} is not a safetensors file. {MODEL}.")
