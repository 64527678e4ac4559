"""Writes safetensors files byte by byte, good and bad ones."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

NUMPY_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "C64": np.dtype("<c8"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "U64": np.dtype("<u8"),
    "BOOL": np.dtype("?"),
}
NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(tensors: Mapping[str, np.ndarray]) -> bytes:
    header: dict[str, Any] = {}
    data = b""
    for name, tensor in tensors.items():
        raw = tensor.tobytes()
        header[name] = entry(NAMES[tensor.dtype], list(tensor.shape), len(data), len(data) + len(raw))
        data += raw
    return with_header(json.dumps(header).encode(), data)
