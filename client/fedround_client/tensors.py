"""State dicts to safetensors and back, with one copy in memory. torch is used only if the caller has imported it."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fedround_client.safetensors_header import DTYPE_NAMES, TORCH_METADATA, TensorInfo
from fedround_client.safetensors_reader import SafetensorsReader
from fedround_client.safetensors_stream import ArraySource, SafetensorsStream
from fedround_client.tensor_types import DTYPES, Framework, StateDict, TensorError

if TYPE_CHECKING:
    import torch

_DTYPES_BY_NAME = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def to_safetensors(state: StateDict, metadata: Mapping[str, str] | None = None) -> bytes:
    """Writes a state dict as a safetensors file.

    Args:
        state: Arrays or tensors by name, of any shape with at least one element, of a dtype in DTYPES, on any device,
            contiguous or not, of either byte order. Tensors that share memory are written separately.
        metadata: Texts by name that the header of the file holds besides.

    Returns:
        The file. It contains nothing but names, shapes, dtypes and values, and the metadata.

    Raises:
        TensorError: The dict is empty, or a value is not such a tensor; the message names it.
    """
    file = io.BytesIO()
    for piece in SafetensorsStream(array_sources(state), metadata).pieces():
        file.write(piece)
        del piece
    return file.getvalue()


def from_safetensors(data: bytes, framework: Framework = "numpy") -> dict[str, Any]:
    """Reads a safetensors file.

    Args:
        data: The file.
        framework: "numpy" for arrays, "torch" for tensors on the CPU.

    Returns:
        Writable np.ndarray or torch.Tensor by name, with the shapes and dtypes of the file.

    Raises:
        TensorError: The bytes are not a safetensors file, or have a dtype that numpy does not have (bfloat16).
    """
    reader = SafetensorsReader(framework)
    reader.write(data)
    return reader.tensors()


def metadata_of(state: StateDict) -> Mapping[str, str]:
    """Returns the metadata of the file of a state dict: that of torch, if it has a torch tensor."""
    torch = sys.modules.get("torch")
    is_torch = torch is not None and any(isinstance(value, torch.Tensor) for value in state.values())
    return TORCH_METADATA if is_torch else {}


def copy_state(state: StateDict, framework: Framework | None) -> dict[str, Any]:
    """Returns a copy of a state dict as arrays or tensors; None for those of the state dict.

    Raises:
        TensorError: As to_safetensors and from_safetensors.
    """
    reader = SafetensorsReader(framework)
    for piece in SafetensorsStream(array_sources(state), metadata_of(state)).pieces():
        reader.write(piece)
        del piece
    return reader.tensors()


def array_sources(state: StateDict) -> list[ArraySource]:
    """Returns the tensors of a state dict as sources of a file, without copying them.

    Raises:
        TensorError: The dict is empty, or a value cannot be written; the message names it.
    """
    if not state:
        raise TensorError("The state dict is empty: a model has at least one tensor.")
    return [_array_source(name, value) for name, value in state.items()]


def float64_arrays(state: StateDict) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Returns the floating-point tensors of a state dict, which are those that are averaged, as float64 arrays.

    Raises:
        TensorError: A value is not a tensor; the message names it.
    """
    torch = sys.modules.get("torch")
    arrays = {}
    for name, value in state.items():
        plain = value
        if torch is not None and isinstance(value, torch.Tensor):
            if not value.is_floating_point():
                continue
            plain = value.detach().cpu().to(torch.float64).numpy()
        array = _as_array(name, plain)
        _safetensors_dtype(name, array.dtype.name, array.size)
        if np.issubdtype(array.dtype, np.floating):
            arrays[name] = np.asarray(array, np.float64)
    return arrays


def _array_source(name: object, value: object) -> ArraySource:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        dtype = _torch_dtype(name, value, torch)
        return ArraySource(TensorInfo(str(name), dtype, tuple(value.shape)), lambda: _tensor_memory(value, torch))
    array = _as_array(name, value)
    dtype = _safetensors_dtype(name, array.dtype.name, array.size)
    return ArraySource(TensorInfo(str(name), dtype, array.shape), lambda: _array_memory(array))


def _as_array(name: object, value: object) -> np.ndarray[Any, np.dtype[Any]]:
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TensorError(f"{name!r} is a {type(value).__name__}, neither a numpy array nor a torch tensor.")
    return np.asarray(value)


def _torch_dtype(name: object, value: torch.Tensor, torch: Any) -> str:
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        raise TensorError(f"Tensor {name!r} is sparse, quantised or without data; a model has dense tensors.")
    return _safetensors_dtype(name, str(value.dtype).removeprefix("torch."), value.numel())


def _safetensors_dtype(name: object, dtype: str, size: int) -> str:
    """Checks that a tensor may be part of a model; returns the name of its dtype in safetensors."""
    if not isinstance(name, str):
        raise TensorError(f"The key {name!r} is not a string: the names of a state dict are strings.")
    if dtype not in DTYPES:
        raise TensorError(f"Tensor {name!r} has the dtype {dtype}; a model may have {', '.join(sorted(DTYPES))}.")
    if size == 0:
        raise TensorError(f"Tensor {name!r} is empty; leave it out of the model.")
    return _DTYPES_BY_NAME[dtype]


def _array_memory(array: np.ndarray[Any, np.dtype[Any]]) -> memoryview:
    # asarray, unlike ascontiguousarray, keeps the shape () of a scalar.
    little = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    return little.reshape(-1).view(np.uint8).data


def _tensor_memory(value: torch.Tensor, torch: Any) -> memoryview:
    plain = value.detach().cpu().contiguous().resolve_conj().resolve_neg()
    flat: np.ndarray[Any, np.dtype[np.uint8]] = plain.reshape(-1).view(torch.uint8).numpy()
    return flat.data
