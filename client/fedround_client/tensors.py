"""State dicts to safetensors and back, with one copy in memory. torch is used only if the caller has imported it."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fedround_client.safetensors_header import DTYPE_NAMES, TORCH_METADATA, TensorInfo
from fedround_client.safetensors_reader import SafetensorsReader
from fedround_client.safetensors_stream import ArraySource, SafetensorsStream
from fedround_client.state_dict import flatten, not_an_array
from fedround_client.tensor_blocks import NUMPY_AND_TORCH, TORCH_ONLY
from fedround_client.tensor_types import Framework, StateDict, TensorError

if TYPE_CHECKING:
    import torch

_DTYPES_BY_NAME = {name: dtype for dtype, name in DTYPE_NAMES.items()}
# Those of numpy in the byte order of the machine, so that the slow dtype.name is not needed for each array.
_NUMPY_DTYPES = {np.dtype(name): dtype for dtype, name in DTYPE_NAMES.items() if dtype not in TORCH_ONLY}
# Those whose memory is as in a file, and which memoryview can cast: no complex ones.
_AS_IN_FILES = frozenset(dtype for dtype in _NUMPY_DTYPES if dtype.kind != "c" and sys.byteorder == "little")
_REAL_FLOATING = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})


def to_safetensors(state: StateDict, metadata: Mapping[str, str] | None = None) -> bytes:
    """Writes a state dict as a safetensors file.

    Args:
        state: Arrays or tensors by name, of any shape, of a dtype in DTYPE_NAMES, on any device, contiguous or not, of
            either byte order. Arrays of other libraries are read by __array__ or DLPack. Tensors that share memory are
            written separately. The names of nested dicts are joined by slashes.
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
    return [_array_source(name, value) for name, value in flatten(state).items()]


def dtypes_of(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Returns the names of the dtypes of arrays or tensors in safetensors, by the names of the arrays."""
    torch = sys.modules.get("torch")
    return {
        name: _torch_dtype(name, value, torch)
        if torch is not None and isinstance(value, torch.Tensor)
        else _numpy_dtype(name, _as_array(name, value))
        for name, value in arrays.items()
    }


def float64_arrays(state: StateDict) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Returns the tensors of a state dict that have real floating-point numbers, as float64 arrays.

    Raises:
        TensorError: A value is not a tensor; the message names it.
    """
    torch = sys.modules.get("torch")
    arrays = {}
    for name, value in flatten(state).items():
        if _array_source(name, value).info.dtype not in _REAL_FLOATING:
            continue
        plain = value
        if torch is not None and isinstance(value, torch.Tensor):
            plain = value.detach().cpu().to(torch.float64).numpy()
        arrays[name] = np.asarray(_as_array(name, plain), np.float64)
    return arrays


def _array_source(name: str, value: object) -> ArraySource:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        dtype = _torch_dtype(name, value, torch)
        return ArraySource(TensorInfo(name, dtype, tuple(value.shape)), partial(_tensor_memory, value, dtype, torch))
    array = _as_array(name, value)
    return ArraySource(TensorInfo(name, _numpy_dtype(name, array), array.shape), partial(_array_memory, array))


def _as_array(name: str, value: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Returns an array of any library as a numpy array, which shares its memory where that is possible."""
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value)
    if not hasattr(value, "__array__") and not hasattr(value, "__dlpack__"):
        raise not_an_array(name, value)
    try:
        return np.asarray(value) if hasattr(value, "__array__") else np.from_dlpack(value)
    except Exception as error:  # an array on a device, for example: each library raises its own exceptions
        raise TensorError(
            f"numpy cannot read {name!r}, a {type(value).__name__}: {error}. Pass it as an array in the memory of the"
            " CPU."
        ) from error


def _numpy_dtype(name: str, array: np.ndarray[Any, np.dtype[Any]]) -> str:
    return _NUMPY_DTYPES.get(array.dtype) or _safetensors_dtype(name, array.dtype.name)


def _torch_dtype(name: str, value: torch.Tensor, torch: Any) -> str:
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        raise TensorError(f"Tensor {name!r} is sparse, quantised or without data; a model has dense tensors.")
    dtype = str(value.dtype).removeprefix("torch.")
    return _DTYPES_BY_NAME.get(dtype) or _safetensors_dtype(name, dtype)


def _safetensors_dtype(name: str, dtype: str) -> str:
    """Returns the name of a dtype in safetensors."""
    if dtype == "complex128":
        raise TensorError(
            f"Tensor {name!r} has the dtype complex128, which safetensors does not have: send complex64, or pairs of"
            " float64: torch.view_as_real(tensor), or array.view(np.float64)."
        )
    if dtype not in _DTYPES_BY_NAME:
        known = ", ".join(sorted(_DTYPES_BY_NAME))
        raise TensorError(f"Tensor {name!r} has the dtype {dtype}: convert it to one of {known}.")
    return _DTYPES_BY_NAME[dtype]


def _array_memory(array: np.ndarray[Any, np.dtype[Any]]) -> memoryview:
    if array.dtype in _AS_IN_FILES and array.flags.c_contiguous and array.nbytes:
        return array.data.cast("B")
    # Other libraries define dtypes of their own, such as JAX's bfloat16, which have no other byte order.
    dtype = array.dtype.newbyteorder("<") if array.dtype.isbuiltin != 2 else array.dtype
    # asarray, unlike ascontiguousarray, keeps the shape () of a scalar.
    little = np.asarray(array, dtype=dtype, order="C")
    return little.reshape(-1).view(np.uint8).data


def _tensor_memory(value: torch.Tensor, dtype: str, torch: Any) -> memoryview:
    if dtype in NUMPY_AND_TORCH:
        return _array_memory(value.numpy(force=True))
    plain = value.detach()
    if not (plain.is_cpu and plain.is_contiguous()) or plain.is_conj() or plain.is_neg():
        plain = plain.cpu().contiguous().resolve_conj().resolve_neg()
    flat: np.ndarray[Any, np.dtype[np.uint8]] = plain.reshape(-1).view(torch.uint8).numpy()
    return flat.data
