"""State dicts to safetensors and back. torch is used only if the caller has imported it already."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

if TYPE_CHECKING:
    import torch

StateDict: TypeAlias = Mapping[str, Any]
"""Tensors by name: numpy arrays, torch tensors, or some of each."""

Framework: TypeAlias = Literal["numpy", "torch"]

DTYPES = frozenset({"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"})
"""What the server takes; bfloat16 from torch only, as numpy has no such type."""


class TensorError(ValueError):
    """A state dict that cannot be written as a model file, or a file that cannot be read as one."""


def to_safetensors(state: StateDict) -> bytes:
    """Writes a state dict as a safetensors file.

    Args:
        state: Arrays or tensors by name, of any shape but with at least one element, of a dtype in DTYPES, on any
            device, contiguous or not, of either byte order. Tensors that share memory are written one by one.

    Returns:
        The file. Nothing but names, shapes, dtypes and values goes into it.

    Raises:
        TensorError: The dict is empty, or something in it is no such tensor; the text names it.
    """
    if not state:
        raise TensorError("The state dict is empty: a model has at least one tensor.")
    torch = sys.modules.get("torch")
    if torch is not None and any(isinstance(value, torch.Tensor) for value in state.values()):
        return _torch_to_safetensors(state, torch)
    return safetensors.numpy.save({name: _plain_array(name, value) for name, value in state.items()})


def from_safetensors(data: bytes, framework: Framework = "numpy") -> dict[str, Any]:
    """Reads a safetensors file.

    Args:
        data: The file.
        framework: "numpy" for arrays, "torch" for tensors on the CPU.

    Returns:
        Writable np.ndarray or torch.Tensor by name, with the shapes and dtypes of the file.

    Raises:
        TensorError: The bytes are no safetensors, or hold a dtype that numpy does not have (bfloat16).
    """
    try:
        if framework == "torch":
            from safetensors.torch import load

            return dict(load(data))
        return dict(safetensors.numpy.load(data))
    except SafetensorError as error:
        raise TensorError(f"This is not a safetensors file: {error}") from error
    except KeyError as error:
        raise TensorError(
            f'numpy has no dtype {error.args[0]}: read this model with framework="torch" (and torch installed).'
        ) from error


def floating(state: StateDict) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Gives the floating tensors of a state dict, which are what is averaged, as float64 arrays.

    Raises:
        TensorError: Something in it is no tensor; the text names it.
    """
    torch = sys.modules.get("torch")
    found = {}
    for name, value in state.items():
        plain = value
        if torch is not None and isinstance(value, torch.Tensor):
            if not value.is_floating_point():
                continue
            plain = value.detach().cpu().to(torch.float64).numpy()
        array = _plain_array(name, plain)
        if np.issubdtype(array.dtype, np.floating):
            found[name] = np.asarray(array, np.float64)
    return found


def _check(name: object, dtype: str, size: int) -> None:
    if not isinstance(name, str):
        raise TensorError(f"The key {name!r} is not a string: the names of a state dict are strings.")
    if dtype not in DTYPES:
        raise TensorError(f"Tensor {name!r} has the dtype {dtype}; a model may have {', '.join(sorted(DTYPES))}.")
    if size == 0:
        raise TensorError(f"Tensor {name!r} is empty; leave it out of the model.")


def _plain_array(name: object, value: object) -> np.ndarray[Any, np.dtype[Any]]:
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TensorError(f"{name!r} is a {type(value).__name__}, neither a numpy array nor a torch tensor.")
    _check(name, value.dtype.name, value.size)
    # asarray, unlike ascontiguousarray, leaves a scalar's shape at ().
    return np.asarray(value, dtype=value.dtype.newbyteorder("<"), order="C")


def _torch_to_safetensors(state: StateDict, torch: Any) -> bytes:
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    memory: set[int] = set()
    for name, value in state.items():
        tensor = value
        if not isinstance(value, torch.Tensor):
            tensor = torch.from_numpy(_plain_array(name, value).copy())
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise TensorError(f"Tensor {name!r} is sparse, quantised or without data; a model has dense tensors.")
        _check(name, str(tensor.dtype).removeprefix("torch."), tensor.numel())
        tensor = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in memory else tensor
        memory.add(storage)
    return bytes(save(tensors))
