"""The header of a safetensors file, written as the reference implementation writes it, and parsed.

The format: 8 bytes with the length of a JSON header (little-endian), the header, then the data of the tensors. The
header maps each name to {"dtype", "shape", "data_offsets": [begin, end]}, counted from the end of the header.
(https://github.com/huggingface/safetensors)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, NamedTuple

PREFIX = 8
"""Bytes in front of the header that hold its length."""
MAX_HEADER = 100_000_000
"""The longest header that the reference implementation accepts, in bytes."""
CACHED_BYTES = 1 << 20
"""The longest header that is kept once it was read or written: all versions of a model, and all updates, have it."""
METADATA = "__metadata__"
TORCH_METADATA = {"format": "pt"}
"""What files of torch tensors say by convention. The versions of a model keep the metadata of the first one."""

DTYPE_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
"""The names of dtypes in numpy and torch by their names in safetensors. A file has its tensors in the reverse order."""

DTYPE_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
DTYPE_SIZES |= {"I32": 4, "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8}
_RANKS = {dtype: rank for rank, dtype in enumerate(reversed(DTYPE_NAMES))}


class HeaderError(ValueError):
    """The bytes are not a valid safetensors header."""


class TensorInfo(NamedTuple):
    """What the header says about one tensor.

    Attributes:
        name: Name of the tensor.
        dtype: Its dtype, by the name in safetensors.
        shape: Its shape; empty for a scalar.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the tensor's data in bytes."""
        return prod(self.shape) * DTYPE_SIZES[self.dtype]


class Header(NamedTuple):
    """What a header says.

    Attributes:
        tensors: The tensors in the order of their data, which is contiguous.
        is_torch: Whether it says that the tensors are those of torch.
    """

    tensors: tuple[TensorInfo, ...]
    is_torch: bool


def data_order(tensor: TensorInfo) -> tuple[int, str]:
    """Returns the sort key of a tensor in a file: the widest dtypes first, so that all are aligned, then by name."""
    return _RANKS[tensor.dtype], tensor.name


def write_header(tensors: Iterable[TensorInfo], metadata: Mapping[str, str] | None = None) -> bytes:
    """Returns the bytes in front of the data of a file that has these tensors, one behind the other.

    Args:
        tensors: The tensors in the order of their data.
        metadata: Texts by name that the header holds besides.

    Raises:
        UnicodeEncodeError: A name cannot be encoded as UTF-8.
    """
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    position = 0
    for tensor in tensors:
        end = position + tensor.num_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (position, end)}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # The data begins at a multiple of eight.
    text += b" " * (-len(text) % PREFIX)
    return len(text).to_bytes(PREFIX, "little") + text


def header_length(prefix: bytes) -> int:
    """Returns the length of the header, from the first 8 bytes of a file.

    Raises:
        HeaderError: The length is larger than MAX_HEADER.
    """
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        raise HeaderError(f"its header would have {length} bytes")
    return length


def read_header(text: bytes) -> Header:
    """Parses a header, without the 8 bytes of its length.

    Raises:
        HeaderError: The header is not valid, or the data would have gaps or overlap.
    """
    header = _parse_json(text)
    metadata = header.get(METADATA)
    entries = [_parse_entry(name, entry) for name, entry in header.items() if name != METADATA]
    entries.sort(key=lambda entry: entry[:2])
    position = 0
    for begin, end, tensor in entries:
        if begin != position:
            raise HeaderError(f"the data of tensor {tensor.name!r} begins at byte {begin}, not {position}")
        position = end
    is_torch = isinstance(metadata, dict) and metadata.get("format") == TORCH_METADATA["format"]
    return Header(tuple(tensor for _, _, tensor in entries), is_torch)


def _parse_json(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise HeaderError("its header is not valid JSON") from error
    if not isinstance(header, dict):
        raise HeaderError("its header is not a JSON object")
    return header


def _parse_entry(name: str, entry: Any) -> tuple[int, int, TensorInfo]:
    """Returns where the data of a tensor begins and ends, and what the header says about it."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise HeaderError(f"tensor {name!r} has no dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_NAMES:
        raise HeaderError(f"tensor {name!r} has the unknown dtype {str(dtype)[:40]!r}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise HeaderError(f"tensor {name!r} has an invalid shape or invalid data_offsets")
    tensor = TensorInfo(name, dtype, tuple(shape))
    if offsets[1] - offsets[0] != tensor.num_bytes:
        raise HeaderError(f"tensor {name!r} needs {tensor.num_bytes} bytes, but has the data_offsets {offsets}")
    return offsets[0], offsets[1], tensor


def _are_sizes(values: Any) -> bool:
    # isinstance would accept a bool as an int.
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
