"""Updates as differences from the round's model in half precision: half the bytes of float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedround_client.cache import SharedFile
from fedround_client.safetensors_header import DTYPE_SIZES, PREFIX, TensorInfo, header_length, read_header
from fedround_client.safetensors_stream import ArraySource, TensorSource

BLOCK = 1 << 18
"""Elements that are processed at a time."""

HALF_DTYPES = {"FLOAT16": "F16", "BFLOAT16": "BF16"}
"""The dtypes of differences, by the name of the precision."""

_WIDE_DTYPES: Mapping[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


class NotRepresentable(ValueError):
    """An update cannot be sent as differences in half precision; in full it may be valid."""


def difference_sources(update: Iterable[ArraySource], model: SharedFile, precision: str) -> list[TensorSource]:
    """Replaces the float32 and float64 tensors of an update by their differences from the model.

    Args:
        update: The tensors of the update; they must not change while the differences are read.
        model: The file of the round's model.
        precision: A key of HALF_DTYPES.

    Returns:
        The tensors of the file to send. Reading one raises NotRepresentable if the dtype cannot hold a difference.

    Raises:
        NotRepresentable: A tensor is not in the model, or has another shape or dtype there.
    """
    in_model = _tensor_offsets(model)
    sources: list[TensorSource] = []
    for source in update:
        info = source.info
        if info.dtype not in _WIDE_DTYPES:
            sources.append(source)
            continue
        model_info, offset = in_model.get(info.name, (None, 0))
        if model_info != info:
            raise NotRepresentable(f"tensor {info.name!r} is not as in the model")
        sources.append(_DifferenceSource(source, model, offset, HALF_DTYPES[precision]))
    return sources


@dataclass(frozen=True)
class _DifferenceSource:
    """The difference of a tensor from the tensor at an offset of the model's file."""

    update: ArraySource
    model: SharedFile
    offset: int
    dtype: str

    @property
    def info(self) -> TensorInfo:
        return TensorInfo(self.update.info.name, self.dtype, self.update.info.shape)

    def pieces(self, offset: int) -> Iterator[memoryview]:
        wide = _WIDE_DTYPES[self.update.info.dtype]
        updated = np.frombuffer(self.update.memory(), wide)
        first, skip = divmod(offset, DTYPE_SIZES[self.dtype])
        for start in range(first, len(updated), BLOCK):
            block = updated[start : start + BLOCK]
            base = np.frombuffer(self.model.read(self.offset + start * wide.itemsize, block.nbytes), wide)
            # Overflow is found by its result.
            with np.errstate(over="ignore", invalid="ignore"):
                difference = block - base
                if not np.isfinite(difference).all():
                    # The difference of Inf or NaN that the model itself has.
                    difference[(block == base) | (np.isnan(block) & np.isnan(base))] = 0
                half = round_to_half(np.asarray(difference, np.float32), self.dtype)
            if half is None:
                raise NotRepresentable(f"{self.dtype} cannot hold the difference of tensor {self.info.name!r}")
            yield half.view(np.uint8).data[skip:]
            skip = 0


def round_to_half(values: np.ndarray[Any, np.dtype[np.float32]], dtype: str) -> np.ndarray[Any, np.dtype[Any]] | None:
    """Rounds float32 to the nearest number of a half precision, ties to even.

    Args:
        values: An array of any shape.
        dtype: "F16" or "BF16".

    Returns:
        An array of the same shape: float16, or uint16 with the bits of bfloat16. None if a value is not finite, or too
        large for the dtype.
    """
    if dtype == "F16":
        with np.errstate(over="ignore"):
            half = values.astype("<f2")
        return half if np.isfinite(half).all() else None
    bits = values.view("<u4")
    # The upper half, plus one if the lower half is above the middle, or at the middle and the upper half is odd.
    upper = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    # Checks the values, too: the carry may have turned a NaN into a finite number.
    return upper if np.isfinite(values).all() and not ((upper & 0x7F80) == 0x7F80).any() else None


def _tensor_offsets(model: SharedFile) -> Mapping[str, tuple[TensorInfo, int]]:
    """Returns the tensors of a file by name, each with the offset of its data in bytes."""
    length = header_length(model.read(0, PREFIX))
    offsets, offset = {}, PREFIX + length
    for tensor in read_header(model.read(PREFIX, length)):
        offsets[tensor.name] = (tensor, offset)
        offset += tensor.num_bytes
    return offsets
