"""What is said of numbers while a file arrives is what the worker says of the whole file."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedround_server.domain.model import Dtype
from fedround_server.engine.format.dtypes import TORCH_DTYPES
from fedround_server.engine.format.finite import NEGATIVE_SCALE, OUT_OF_RANGE, NumberCheck, _divide, find_not_finite
from fedround_server.engine.format.gate import HeaderGate
from fedround_server.engine.format.manifest import PREFIX, parse_header
from fedround_server.engine.jobs import CheckResult
from unit.checks import check_numbers
from unit.safetensors_files import entry, with_header

FLOATING = [dtype for dtype in Dtype if dtype.is_floating]
BAD = [float("nan"), -float("nan"), float("inf"), -float("inf")]
EIGHTS = (Dtype.F8_E4M3, Dtype.F8_E5M2)
# The largest number of each type has all bits of the exponent but one, or in F8_E4M3 all of them.
SPOILT = [(dtype, value) for dtype in FLOATING for value in ("nan", "-nan", "inf", "-inf") if dtype is not EIGHTS[0]]


def raw(dtype: Dtype, values: list[float]) -> bytes:
    return torch.tensor(values, dtype=torch.float64).to(TORCH_DTYPES[dtype]).view(torch.uint8).numpy().tobytes()


def file_of(dtype: Dtype, *tensors: bytes) -> bytes:
    header, data = {}, b""
    for number, tensor in enumerate(tensors):
        shape = [len(tensor) // dtype.itemsize]
        header[f"t{number}"] = entry(dtype.name, shape, len(data), len(data) + len(tensor))
        data += tensor
    header["whole"] = entry("I8", [1], len(data), len(data) + 1)
    return with_header(json.dumps(header).encode(), data + b"\x7f")


def found(content: bytes, folder: Path) -> str | None:
    """Returns the tensor that both ways of looking name."""
    (folder / "file").write_bytes(content)
    layout = parse_header(content[PREFIX : PREFIX + int.from_bytes(content[:PREFIX], "little")])
    name = find_not_finite(layout, content)
    assert name == check_numbers(folder / "file").not_finite
    return name


@pytest.mark.parametrize("dtype", FLOATING, ids=lambda dtype: dtype.name)
def test_numbers_of_all_sizes_are_finite(dtype: Dtype, tmp_path: Path) -> None:
    limits = torch.finfo(TORCH_DTYPES[dtype])
    values = raw(dtype, [limits.max, limits.min, limits.tiny, 0, -0.0, 1] * 2)
    assert found(file_of(dtype, values, b"", values), tmp_path) is None


@pytest.mark.parametrize(("dtype", "value"), [*SPOILT, (EIGHTS[0], "nan")], ids=str)
def test_the_first_tensor_with_nan_or_inf_is_named(dtype: Dtype, value: str, tmp_path: Path) -> None:
    good, bad = raw(dtype, [1, 2, 3, 4]), raw(dtype, [1, 2, 3, float(value)])
    assert found(file_of(dtype, good, bad, bad), tmp_path) == "t1"
    assert found(file_of(dtype, bad), tmp_path) == "t0"


def test_integers_are_not_looked_at(tmp_path: Path) -> None:
    content = np.full(4, -1, np.int64).tobytes()
    assert found(file_of(Dtype.I64, content), tmp_path) is None


def test_what_is_kept_of_files_counts_all_their_tensors() -> None:
    integers = file_of(Dtype.I64, *[bytes(8)] * 1000)
    _divide.cache_clear()
    layout = parse_header(integers[PREFIX : PREFIX + int.from_bytes(integers[:PREFIX], "little")])
    assert find_not_finite(layout, integers) is None
    assert _divide.cache.currsize >= 1000


@st.composite
def files(draw: st.DrawFn) -> tuple[bytes, str | None]:
    """Draws a file of tensors of all types, at odd offsets and empty ones too, and the first with NaN or Inf."""
    header, data, first = {}, b"", None
    for number in range(draw(st.integers(1, 6))):
        dtype = draw(st.sampled_from(Dtype))
        of_type = TORCH_DTYPES[dtype]
        if dtype.is_floating:
            limits = torch.finfo(of_type)
            good = st.sampled_from([0.0, -0.0, 1.0, limits.min, limits.max, limits.tiny])
            values = draw(st.lists(good if draw(st.booleans()) else good | st.sampled_from(BAD), max_size=9))
        else:
            values = draw(st.lists(st.sampled_from([0.0, 1.0]), max_size=9))
        numbers = torch.tensor(values * (2 if dtype.is_complex else 1), dtype=torch.float64).to(of_type)
        raw = numbers.view(torch.uint8).numpy().tobytes()
        if first is None and not torch.isfinite(numbers.double()).all():
            first = f"t{number}"
        header[f"t{number}"] = entry(dtype.name, [len(raw) // dtype.itemsize], len(data), len(data) + len(raw))
        data += raw
    spaces = b" " * draw(st.integers(0, 7))
    return with_header(json.dumps(header).encode() + spaces, data), first


def fed(content: bytes, cuts: list[int], scaled: tuple[str, ...] = ()) -> NumberCheck:
    """Feeds a file in pieces, as it arrives: the header is known as soon as its last byte is there."""
    gate = HeaderGate()
    numbers = NumberCheck(lambda: gate.layout, lambda _: scaled)
    bounds = [0, *sorted(cuts), len(content)]
    for begin, end in pairwise(bounds):
        gate.feed(content[begin:end])
        numbers.feed(content[begin:end])
    return numbers


@given(data=st.data(), file=files())
def test_a_file_in_pieces_is_found_to_be_what_torch_says(data: st.DataObject, file: tuple[bytes, str | None]) -> None:
    content, first = file
    one_by_one = list(range(content.index(b"}}"), len(content)))
    cuts = data.draw(st.lists(st.integers(0, len(content)), max_size=12) | st.just(one_by_one))
    assert fed(content, cuts).found == CheckResult(not_finite=first)


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, CheckResult()),
        ({"w.int8_scales": np.array([-0.0, 3e38], np.float32)}, CheckResult()),
        ({"w.int8_scales": np.array([1, np.nan], np.float32)}, CheckResult(not_finite="w.int8_scales")),
        ({"w.int8_scales": np.array([np.inf, 0], np.float32)}, CheckResult(not_finite="w.int8_scales")),
        (
            {"w.int8_scales": np.array([1, -1e-30], np.float32)},
            CheckResult(problem=NEGATIVE_SCALE.format("w.int8_scales")),
        ),
        ({"w": np.array([127, -127, -128], np.int8)}, CheckResult(problem=OUT_OF_RANGE.format("w"))),
        ({"v": np.full(3, np.nan, np.float32)}, CheckResult(not_finite="v")),
        # Of integers that are not differences, and of other numbers, any are allowed.
        ({"steps": np.full(3, -128, np.int8), "v": np.full(3, -1, np.float32)}, CheckResult()),
    ],
)
def test_int8_differences_and_scales_out_of_range_are_found(changed: dict[str, Any], found: CheckResult) -> None:
    tensors = {
        "w": np.array([127, -127, 0], np.int8),
        "w.int8_scales": np.zeros(2, np.float32),
        "steps": np.zeros(3, np.int8),
        "v": np.ones(3, np.float32),
    }
    content = safetensors.numpy.save(tensors | changed)
    for size in (1, 3, len(content)):
        assert fed(content, list(range(0, len(content), size)), ("w",)).found == found
