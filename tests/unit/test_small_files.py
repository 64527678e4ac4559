"""What the server's own process says of small files is what the worker says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedround_server.domain.model import Dtype
from fedround_server.engine.format.dtypes import TORCH_DTYPES
from fedround_server.engine.format.manifest import PREFIX, parse_header
from fedround_server.engine.small_files import find_not_finite
from unit.checks import check_numbers
from unit.safetensors_files import entry, with_header

FLOATING = [dtype for dtype in Dtype if dtype.is_floating]
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
