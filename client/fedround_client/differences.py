"""Updates as differences from the round's model in half precision or int8: a half or a quarter of float32's bytes."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedround_client.cache import SharedFile
from fedround_client.half_precision import round_to_half, round_to_half_at_random
from fedround_client.int8 import Float32, block_scales, to_int8
from fedround_client.safetensors_header import DTYPE_SIZES, PREFIX, TensorInfo, header_length, read_header
from fedround_client.safetensors_stream import ArraySource, TensorSource
from fedround_client.transport import INT8_BLOCK, MAX_BLOCK, TensorPrecision, Transport

BLOCK = MAX_BLOCK
"""Numbers that are processed at a time: they fit the second-level cache."""

SCALES = ".int8_scales"
"""What follows the name of a tensor of int8 differences in the name of the tensor of their scales."""

_HALF_DTYPES: Mapping[str, str] = {"FLOAT16": "F16", "BFLOAT16": "BF16"}
_WIDE_DTYPES: Mapping[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


class NotRepresentable(ValueError):
    """An update cannot be sent as differences in the precisions of its round; in full it may be valid."""


def difference_sources(
    update: Iterable[ArraySource], model: SharedFile, transport: Transport, seed: int | None = None
) -> list[TensorSource]:
    """Replaces float32 and float64 tensors of an update by their differences from the model.

    Args:
        update: The tensors of the update; they must not change while the differences are read.
        model: The file of the round's model.
        transport: The precisions of the tensors.
        seed: Of stochastic rounding; by default a random one from the operating system.

    Returns:
        The tensors of the file to send, the same bytes whenever they are read. Reading one raises NotRepresentable if
        its precision cannot hold a difference.

    Raises:
        NotRepresentable: A tensor is not in the model, or has another shape or dtype there.
    """
    in_model = _tensor_offsets(model)
    seed = secrets.randbits(128) if seed is None else seed
    sources: list[TensorSource] = []
    for number, source in enumerate(update):
        info = source.info
        precision = transport.of_tensor(info.name)
        if info.dtype not in _WIDE_DTYPES or precision.precision == "FULL":
            sources.append(source)
            continue
        model_info, offset = in_model.get(info.name, (None, 0))
        if model_info != info:
            raise NotRepresentable(f"tensor {info.name!r} is not as in the model")
        random = _Random(seed, number) if precision.stochastic_rounding else None
        sources += _encoded(_Difference(source, model, offset, random), precision)
    return sources


def _encoded(difference: _Difference, precision: TensorPrecision) -> list[TensorSource]:
    if precision.precision != "INT8":
        return [_HalfSource(difference, _HALF_DTYPES[precision.precision])]
    scaled = _Int8Source(difference, precision.block_size or INT8_BLOCK)
    return [scaled, _ScaleSource(scaled)]


@dataclass(frozen=True)
class _Random:
    """Random numbers of one tensor, which are the same whenever they are drawn."""

    seed: int
    tensor: int

    def generator(self, block: int) -> np.random.Generator:
        """Returns a new generator for a block of the tensor, independent of those of all others."""
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence(self.seed, spawn_key=(self.tensor, block))))


@dataclass(frozen=True)
class _Difference:
    """The difference of a tensor from the tensor at an offset of the model's file, and how it is rounded."""

    update: ArraySource
    model: SharedFile
    offset: int
    random: _Random | None

    @property
    def info(self) -> TensorInfo:
        """Name, dtype and shape of the tensor."""
        return self.update.info

    @property
    def wide(self) -> np.dtype[Any]:
        """The dtype of the tensor."""
        return _WIDE_DTYPES[self.info.dtype]

    def blocks(self, first: int, dtype: np.dtype[Any]) -> Iterator[tuple[int, np.ndarray[Any, np.dtype[Any]]]]:
        """Yields blocks of numbers, computed in a dtype, from the one with a certain index on, each with its index."""
        updated = np.frombuffer(self.update.memory(), self.wide)
        for index in range(first, -(-len(updated) // BLOCK)):
            start = index * BLOCK
            block = updated[start : start + BLOCK]
            base = np.frombuffer(self.model.read(self.offset + start * self.wide.itemsize, block.nbytes), self.wide)
            # Overflow is found by its result.
            with np.errstate(over="ignore", invalid="ignore"):
                difference = np.subtract(block, base, dtype=dtype)
                if not np.isfinite(difference).all():
                    # The difference of Inf or NaN that the model itself has.
                    difference[(block == base) | (np.isnan(block) & np.isnan(base))] = 0
            yield index, difference

    def generator(self, block: int) -> np.random.Generator | None:
        """Returns what rounds a block at random; None to round to the nearest."""
        return None if self.random is None else self.random.generator(block)

    def not_representable(self, dtype: str) -> NotRepresentable:
        """Returns the error that a dtype cannot hold a number."""
        return NotRepresentable(f"{dtype} cannot hold the difference of tensor {self.info.name!r}")


@dataclass(frozen=True)
class _HalfSource:
    """A difference in half precision."""

    difference: _Difference
    dtype: str

    @property
    def info(self) -> TensorInfo:
        return TensorInfo(self.difference.info.name, self.dtype, self.difference.info.shape)

    def pieces(self, offset: int) -> Iterator[memoryview]:
        first, skip = divmod(offset, BLOCK * DTYPE_SIZES[self.dtype])
        for index, difference in self.difference.blocks(first, self.difference.wide):
            random = self.difference.generator(index)
            with np.errstate(over="ignore"):
                values = np.asarray(difference, np.float32)
            if random is None:
                half = round_to_half(values, self.dtype)
            else:
                half = round_to_half_at_random(values, self.dtype, random)
            if half is None:
                raise self.difference.not_representable(self.dtype)
            yield half.view(np.uint8).data[skip:]
            skip = 0


@dataclass(frozen=True)
class _Int8Source:
    """A difference divided by the scales of its blocks."""

    difference: _Difference
    block_size: int

    @property
    def info(self) -> TensorInfo:
        return TensorInfo(self.difference.info.name, "I8", self.difference.info.shape)

    @cached_property
    def scales(self) -> Float32:
        """The scales: computed once, since they take little memory, and a pass over the tensor."""
        parts = [np.empty(0, "<f4")]
        for _, difference in self.difference.blocks(0, np.dtype(np.float64)):
            scales = block_scales(difference, self.block_size) if np.isfinite(difference).all() else None
            if scales is None:
                raise self.difference.not_representable("I8")
            parts.append(scales)
        return np.concatenate(parts)

    def pieces(self, offset: int) -> Iterator[memoryview]:
        first, skip = divmod(offset, BLOCK)
        per_block = BLOCK // self.block_size
        for index, difference in self.difference.blocks(first, np.dtype(np.float64)):
            scales = self.scales[index * per_block : (index + 1) * per_block]
            integers = to_int8(difference, scales, self.block_size, self.difference.generator(index))
            yield integers.view(np.uint8).data[skip:]
            skip = 0


@dataclass(frozen=True)
class _ScaleSource:
    """The scales of a tensor of int8 differences."""

    scaled: _Int8Source

    @property
    def info(self) -> TensorInfo:
        info = self.scaled.info
        return TensorInfo(info.name + SCALES, "F32", (-(-info.num_bytes // self.scaled.block_size),))

    def pieces(self, offset: int) -> Iterator[memoryview]:
        yield self.scaled.scales.view(np.uint8).data[offset:]


def _tensor_offsets(model: SharedFile) -> Mapping[str, tuple[TensorInfo, int]]:
    """Returns the tensors of a file by name, each with the offset of its data in bytes."""
    length = header_length(model.read(0, PREFIX))
    offsets, offset = {}, PREFIX + length
    for tensor in read_header(model.read(PREFIX, length)).tensors:
        offsets[tensor.name] = (tensor, offset)
        offset += tensor.num_bytes
    return offsets
