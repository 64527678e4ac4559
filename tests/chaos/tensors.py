"""Model files and what is to be made of them: an implementation of its own, one number at a time.

It shares no code with the server: the safetensors format is read and written by hand. Means of models are rational
numbers that are rounded once, to nearest, ties to even; those of moments are computed in Python's floats, which are
IEEE doubles, in canonical order.
"""

import json
import math
import random
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

Number = float | int
# Bytes of an element, and how struct calls it; bfloat16 is the upper half of a float32.
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
CODES = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h", "I8": "b", "U8": "B", "BOOL": "?"}
# Bits of the significand, and the exponent of the smallest normal number.
FLOATS = {"F64": (53, -1022), "F32": (24, -126), "F16": (11, -14), "BF16": (8, -126)}
LARGEST = {
    "F64": sys.float_info.max,
    "F32": (2 - 2.0**-23) * 2.0**127,
    "F16": 65504.0,
    "BF16": (2 - 2.0**-7) * 2.0**127,
}
COUNTER = "num_batches_tracked"
CONTROL = "control/"


@dataclass(frozen=True)
class Tensor:
    """A tensor by its type, its shape and its numbers, flat."""

    dtype: str
    shape: tuple[int, ...]
    values: tuple[Number, ...]

    @property
    def data(self) -> bytes:
        if self.dtype == "BF16":
            return b"".join(struct.pack("<f", value)[2:] for value in self.values)
        return struct.pack(f"<{len(self.values)}{CODES[self.dtype]}", *self.values)


Tensors = Mapping[str, Tensor]
Kinds = Mapping[str, tuple[str, tuple[int, ...]]]
"""The types and shapes of tensors by name."""


def write(tensors: Tensors, padding: int = 0) -> bytes:
    """Writes a file; the format allows spaces behind its header."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        begin, data = len(data), data + tensor.data
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode() + b" " * padding
    return struct.pack("<Q", len(text)) + text + data


def merge(base: bytes, delta: bytes) -> bytes:
    """The whole file of a version: what only the base has, then the delta, each in its order."""
    changed = read(delta)
    merged = {name: tensor for name, tensor in read(base).items() if name not in changed} | dict(changed)
    header, data = {}, b""
    for name, tensor in merged.items():
        begin, data = len(data), data + tensor.data
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header, separators=(",", ":"))
    text += " " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text.encode() + data


def read(file: bytes) -> Tensors:
    start = 8 + struct.unpack("<Q", file[:8])[0]
    return {
        name: Tensor(entry["dtype"], tuple(entry["shape"]), _numbers(entry["dtype"], file, start, entry))
        for name, entry in json.loads(file[8:start]).items()
        if name != "__metadata__"
    }


def _numbers(dtype: str, file: bytes, start: int, entry: dict[str, list[int]]) -> tuple[Number, ...]:
    begin, end = entry["data_offsets"]
    data = file[start + begin : start + end]
    if dtype == "BF16":
        return tuple(struct.unpack("<f", b"\0\0" + data[at : at + 2])[0] for at in range(0, len(data), 2))
    return struct.unpack(f"<{len(data) // SIZES[dtype]}{CODES[dtype]}", data)


def narrow(value: float, dtype: str) -> float:
    """Rounds a double to a narrower type, once; all steps but the rounding are exact."""
    if dtype == "F64" or value == 0.0 or not math.isfinite(value):
        return value
    precision, smallest = FLOATS[dtype]
    _, exponent = math.frexp(value)
    unit = max(exponent - 1, smallest) - precision + 1
    return math.copysign(math.ldexp(round(math.ldexp(value, -unit)), unit), value)


def exact_mean(values: Sequence[float], weights: Sequence[int], dtype: str) -> float:
    """The weighted mean, rounded once; a zero is negative if all values are."""
    terms = [Fraction(value) * weight for value, weight in zip(values, weights, strict=True)]
    mean = sum(terms, Fraction()) / sum(weights)
    if not mean:
        return 0.0 if any(terms) else max(values, key=lambda value: math.copysign(1, value))
    precision, smallest = FLOATS[dtype]
    exponent = abs(mean.numerator).bit_length() - mean.denominator.bit_length()
    exponent -= abs(mean) < Fraction(2) ** exponent
    unit = Fraction(2) ** (max(exponent, smallest) - precision + 1)
    return math.copysign(float(round(mean / unit) * unit), mean)


def weighted_mean(values: Sequence[float], weights: Sequence[int]) -> float:
    total = 0.0
    for value, weight in zip(values, weights, strict=True):
        total += value * float(weight)
    return total / float(sum(weights))


def aggregate(updates: Sequence[Tensors], weights: Sequence[int], *, exact: bool = True) -> Tensors:
    """FedAvg over updates in canonical order that have examples, and what becomes of tensors that have no mean."""
    updates = [update for update, weight in zip(updates, weights, strict=True) if weight]
    weights = [weight for weight in weights if weight]
    heaviest = updates[max(range(len(weights)), key=lambda index: (weights[index], -index))]
    made = {}
    for name, first in updates[0].items():
        columns = list(zip(*(update[name].values for update in updates), strict=True))
        if first.dtype in FLOATS:
            numbers = [
                exact_mean(column, weights, first.dtype)
                if exact
                else narrow(weighted_mean(column, weights), first.dtype)
                for column in columns
            ]
        elif name.endswith(COUNTER):
            numbers = [max(column) for column in columns]
        else:
            numbers = list(heaviest[name].values)
        made[name] = Tensor(first.dtype, first.shape, tuple(numbers))
    return made


def has_differences(update: Tensors, model: Tensors) -> bool:
    """Returns whether an update has tensors of other types than the model: they are differences."""
    return any(tensor.dtype != model[name].dtype for name, tensor in update.items())


def whole(update: Tensors, model: Tensors) -> Tensors:
    """Adds differences to the model that they were made from, in doubles, within the range of the model's types."""
    return {
        name: tensor if tensor.dtype == model[name].dtype else _sum(model[name], tensor)
        for name, tensor in update.items()
    }


def _sum(base: Tensor, difference: Tensor) -> Tensor:
    most = LARGEST[base.dtype]
    sums = (left + right for left, right in zip(base.values, difference.values, strict=True))
    return Tensor(base.dtype, base.shape, tuple(max(-most, min(most, one)) for one in sums))


def posterior(updates: Sequence[Tensors], weights: Sequence[int], rank: int) -> Tensors:
    """The SWAG posterior of moments in canonical order: their means, and all deviations side by side, scaled."""
    weights = weights if any(weights) else [1] * len(weights)
    names = {name for name in updates[0] if not name.startswith("deviation/")}
    made = dict(aggregate([{name: update[name] for name in names} for update in updates], weights, exact=False))
    for index, update in enumerate(updates):
        scale = math.sqrt(weights[index] / sum(weights) / max(rank - 1, 1))
        for name, tensor in update.items():
            if name.startswith("deviation/"):
                _, column, rest = name.split("/", 2)
                numbers = tuple(narrow(value * scale, "F32") for value in tensor.values)
                made[f"deviation/{index * rank + int(column)}/{rest}"] = Tensor("F32", tensor.shape, numbers)
    return made


def same(left: Tensors, right: Tensors, *, exact: bool = True, roots: bool = False) -> str | None:
    """Compares bit by bit, or within a few roundings; returns what differs.

    Args:
        left: What was made.
        right: What is expected.
        exact: Whether bit by bit.
        roots: Whether square roots were taken, whose last bit libraries round differently: doubles are the same within
            two units in the last place of the largest one of their tensor.
    """
    if left.keys() != right.keys():
        return f"the tensors {sorted(left.keys() ^ right.keys())}"
    for name, tensor in left.items():
        other = right[name]
        if (tensor.dtype, tensor.shape) != (other.dtype, other.shape):
            return f"{name}: {tensor} instead of {other}"
        near = _near(tensor, other) if not exact else roots and tensor.dtype == "F64" and _adjacent(tensor, other)
        if tensor.data != other.data and not near:
            return f"{name}: {tensor} instead of {other}"
    return None


def _adjacent(left: Tensor, right: Tensor) -> bool:
    unit = math.ulp(max(map(abs, right.values), default=0.0))
    return all(abs(one - other) <= 2 * unit for one, other in zip(left.values, right.values, strict=True))


def _near(left: Tensor, right: Tensor) -> bool:
    if left.dtype not in FLOATS:
        return False
    unit = max(2.0 ** (2 - FLOATS[left.dtype][0]), 1e-9)
    most = max(map(abs, right.values))
    return all(
        abs(one - other) <= unit * abs(other) + 1e-9 * most
        for one, other in zip(left.values, right.values, strict=True)
    )


def shapes(draw: random.Random) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Draws what a model consists of: some tensors of all types."""
    kinds = {f"layer.{dtype.lower()}": (dtype, (draw.randint(1, 3), draw.randint(1, 4))) for dtype in SIZES}
    chosen = dict(draw.sample(sorted(kinds.items()), draw.randint(2, len(kinds))))
    # SWAG wants a floating tensor; BatchNorm counts in one without dimensions.
    return {"weight": ("F32", (2, 3)), **chosen, f"norm.{COUNTER}": ("I64", ())}


def fill(kinds: Kinds, draw: random.Random) -> Tensors:
    """Draws numbers for a model."""
    return {
        name: Tensor(dtype, shape, tuple(_number(dtype, draw) for _ in range(math.prod(shape))))
        for name, (dtype, shape) in kinds.items()
    }


def control(kinds: Kinds) -> Kinds:
    """Returns what updates have beside these tensors of a model, if the rule has a control variate."""
    return {
        CONTROL + name: ("F64" if dtype == "F64" else "F32", shape)
        for name, (dtype, shape) in kinds.items()
        if dtype in FLOATS
    }


def divided(update: Tensors) -> tuple[Tensors, Tensors]:
    """Returns the tensors of an update, and the changes of control variates by the names of the model's tensors."""
    own = {name: one for name, one in update.items() if not name.startswith(CONTROL)}
    return own, {name: update[CONTROL + name] for name in own if CONTROL + name in update}


def moments(kinds: Kinds, rank: int, draw: random.Random) -> Tensors:
    """Draws what a participant sends in a SWAG round."""
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, (dtype, shape) in kinds.items():
        if dtype in FLOATS:
            wanted |= {f"mean/{name}": ("F64", shape), f"second/{name}": ("F64", shape)}
            wanted |= {f"deviation/{column}/{name}": ("F32", shape) for column in range(rank)}
    return fill(wanted, draw)


def _number(dtype: str, draw: random.Random) -> Number:
    if dtype in FLOATS:
        return narrow(draw.gauss(0, 1) * 2.0 ** draw.randint(-12, 6), dtype)
    if dtype == "BOOL":
        return draw.random() < 0.5
    return draw.randint(0, 100)
