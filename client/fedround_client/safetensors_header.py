"""The header of a safetensors file: written as the reference implementation writes it, and read.

The format: 8 bytes with the length of a JSON header (little-endian), the header, then the tensors' data. The header
maps each name to {"dtype", "shape", "data_offsets": [begin, end]}, counted from the end of the header.
(https://github.com/huggingface/safetensors)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

PREFIX = 8
MAX_HEADER = 100_000_000
"""What the reference implementation reads at most, in bytes."""

NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
"""Types by their safetensors names, with the names that numpy and torch give them; the order of the data, backwards."""

SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4}
SIZES |= {"F64": 8, "I64": 8, "U64": 8}
_ORDER = {dtype: number for number, dtype in enumerate(reversed(NAMES))}


class HeaderError(ValueError):
    """A header that describes no file."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file.

    Attributes:
        name: Its name.
        dtype: Its type, by its safetensors name.
        shape: Its shape; empty for a scalar.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of its data."""
        return prod(self.shape) * SIZES[self.dtype]


def data_order(tensor: TensorInfo) -> tuple[int, str]:
    """Sorts tensors as the data of a file has them: the widest types first, so that all are aligned; then by name."""
    return _ORDER[tensor.dtype], tensor.name


def write_header(tensors: Iterable[TensorInfo]) -> bytes:
    """Writes everything before the data of a file with these tensors, one behind the other.

    Raises:
        UnicodeEncodeError: A name has characters that UTF-8 does not have.
    """
    header: dict[str, Any] = {}
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
    """Reads how long the header is, from the first 8 bytes of a file.

    Raises:
        HeaderError: No header is so long.
    """
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        raise HeaderError(f"its header would have {length} bytes")
    return length


def read_header(text: bytes) -> list[TensorInfo]:
    """Reads a header, without the 8 bytes of its length.

    Returns:
        The tensors in the order of their data, which follow each other without a hole.

    Raises:
        HeaderError: It describes no file.
    """
    try:
        header = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise HeaderError("its header is not valid JSON") from error
    if not isinstance(header, dict):
        raise HeaderError("its header is not a JSON object")
    found = [_read(name, entry) for name, entry in header.items() if name != "__metadata__"]
    position = 0
    for begin, end, tensor in sorted(found, key=lambda one: one[:2]):
        if begin != position:
            raise HeaderError(f"the data of tensor {tensor.name!r} begins at byte {begin}, not {position}")
        position = end
    return [tensor for _, _, tensor in sorted(found, key=lambda one: one[:2])]


def _read(name: str, entry: Any) -> tuple[int, int, TensorInfo]:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise HeaderError(f"tensor {name!r} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in NAMES:
        raise HeaderError(f"tensor {name!r} has an unknown dtype {str(dtype)[:40]!r}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise HeaderError(f"tensor {name!r} has a shape or data_offsets that are none")
    tensor = TensorInfo(name, dtype, tuple(shape))
    if offsets[1] - offsets[0] != tensor.num_bytes:
        raise HeaderError(f"tensor {name!r} needs {tensor.num_bytes} bytes, and has data_offsets {offsets}")
    return offsets[0], offsets[1], tensor


def _are_sizes(values: Any) -> bool:
    # bool is an int in Python, but not here.
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
