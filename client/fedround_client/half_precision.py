"""Updates as differences from the round's model, in half precision: half the bytes of float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedround_client.cache import SharedFile
from fedround_client.safetensors_header import PREFIX, SIZES, TensorInfo, header_length, read_header
from fedround_client.tensors import ArraySource, StateDict, TensorSource, array_sources

BLOCK = 1 << 18
"""Elements that are worked on at a time."""

HALF_DTYPES = {"FLOAT16": "F16", "BFLOAT16": "BF16"}
"""The types of differences by precision."""

_WIDE: Mapping[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


class NotRepresentable(ValueError):
    """An update that cannot be told as differences in half precision; in full it may be fine."""


def differences(update: StateDict, model: SharedFile, precision: str) -> list[TensorSource]:
    """Puts differences from the model in place of an update's float32 and float64 tensors.

    Args:
        update: The update; it must not change while the differences are read.
        model: The file of the round's model.
        precision: One of HALF_DTYPES.

    Returns:
        Tensors to be written; reading one raises NotRepresentable if the type cannot hold it.

    Raises:
        NotRepresentable: The update has not the tensors of the model.
        TensorError: It cannot be written at all.
    """
    known = _places(model)
    found: list[TensorSource] = []
    for tensor in array_sources(update):
        described = tensor.described
        if described.dtype not in _WIDE:
            found.append(tensor)
            continue
        before, place = known.get(described.name, (None, 0))
        if before != described:
            raise NotRepresentable(f"tensor {described.name!r} is not as in the model")
        found.append(_Difference(tensor, model, place, HALF_DTYPES[precision]))
    return found


@dataclass(frozen=True)
class _Difference:
    """A tensor that is written as its difference from the model's, which begins at a place in a file."""

    after: ArraySource
    model: SharedFile
    place: int
    dtype: str

    @property
    def described(self) -> TensorInfo:
        return TensorInfo(self.after.described.name, self.dtype, self.after.described.shape)

    def pieces(self, offset: int) -> Iterator[memoryview]:
        wide = _WIDE[self.after.described.dtype]
        after = np.frombuffer(self.after.memory(), wide)
        first = offset // SIZES[self.dtype]
        skip = offset % SIZES[self.dtype]
        for start in range(first, len(after), BLOCK):
            block = after[start : start + BLOCK]
            before = np.frombuffer(self.model.read(self.place + start * wide.itemsize, block.nbytes), wide)
            # What is too large is told by what comes of it.
            with np.errstate(over="ignore", invalid="ignore"):
                half = round_to_half(np.asarray(block - before, np.float32), self.dtype)
            if half is None:
                raise NotRepresentable(f"{self.dtype} cannot hold the difference of tensor {self.described.name!r}")
            yield half.view(np.uint8).data[skip:]
            skip = 0


def round_to_half(values: np.ndarray[Any, np.dtype[np.float32]], dtype: str) -> np.ndarray[Any, np.dtype[Any]] | None:
    """Rounds float32 to the nearest number of a half precision, ties to even.

    Args:
        values: Of any shape.
        dtype: "F16" or "BF16".

    Returns:
        Of the same shape, float16, or uint16 with the bits of bfloat16; None if a value is none of its finite numbers.
    """
    if dtype == "F16":
        with np.errstate(over="ignore"):
            half = values.astype("<f2")
        return half if np.isfinite(half).all() else None
    bits = values.view("<u4")
    # The upper half, and one more if the lower one is above the middle, or at it and the upper one odd.
    upper = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    # NaN and Inf, and what was rounded to Inf; a NaN may have been carried into the sign.
    return upper if np.isfinite(values).all() and not ((upper & 0x7F80) == 0x7F80).any() else None


def _places(model: SharedFile) -> Mapping[str, tuple[TensorInfo, int]]:
    """Returns the tensors of a file, each with where it begins in bytes."""
    length = header_length(model.read(0, PREFIX))
    found, place = {}, PREFIX + length
    for tensor in read_header(model.read(PREFIX, length)):
        found[tensor.name] = (tensor, place)
        place += tensor.num_bytes
    return found
