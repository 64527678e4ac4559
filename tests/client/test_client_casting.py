import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedround_client import TensorError, from_safetensors
from fedround_client.casting import Caster
from fedround_client.safetensors_stream import SafetensorsStream
from fedround_client.tensors import array_sources

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FLOAT8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
LOGGER = "fedround_client.casting"


def cast(update, dtypes, caster=None):
    sources = (caster or Caster()).cast(array_sources(update), dtypes)
    return from_safetensors(b"".join(SafetensorsStream(sources).pieces()), "torch")


@given(
    st.lists(st.floats(-60000, 60000, width=32), min_size=0, max_size=40),
    st.sampled_from(sorted(DTYPES)),
    st.sampled_from(sorted(DTYPES)),
)
def test_an_update_gets_the_dtype_of_the_model(values, have, wanted):
    tensor = torch.tensor(values, dtype=torch.float32).to(DTYPES[have])
    [found] = cast({"w": tensor}, {"w": wanted}).values()
    # bfloat16 is rounded from float32.
    expected = (tensor.float() if wanted == "BF16" else tensor).to(DTYPES[wanted])
    assert found.dtype == DTYPES[wanted]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", sorted(FLOAT8))
def test_float8_is_cast_as_torch_does(dtype):
    codes = torch.arange(256, dtype=torch.uint8).view(FLOAT8[dtype])
    numbers = codes.float()
    finite = numbers[numbers.isfinite()]
    # Each number, the middle between any two neighbours, and the next floats beside it.
    ordered = finite.sort().values
    middles = (ordered[1:] + ordered[:-1]) / 2
    beside = [torch.nextafter(middles, torch.tensor(side)) for side in (-torch.inf, torch.inf)]
    for values in (finite, middles, *beside):
        [found] = cast({"w": values}, {"w": dtype}).values()
        assert torch.equal(found.float(), values.to(FLOAT8[dtype]).float())
    [wide] = cast({"w": codes}, {"w": "F32"}).values()
    assert torch.equal(wide.nan_to_num(7), numbers.nan_to_num(7))


def test_it_is_said_once_which_tensors_are_cast(caplog):
    caster = Caster()
    with caplog.at_level(logging.WARNING, LOGGER):
        for _ in range(3):
            cast({"b": np.zeros(2), "w": np.zeros(3)}, {"b": "F32", "w": "F32"}, caster)
    [record] = caplog.records
    assert "tensor 'b' from float64 to float32 and 1 more" in record.getMessage()
    assert ".astype(np.float32)" in record.getMessage()


@pytest.mark.parametrize("value", [np.zeros(2, np.int64), np.zeros(2, np.complex64), np.zeros(2, np.float32)])
def test_other_tensors_are_left_as_they_are(value, caplog):
    [found] = cast({"w": value}, {"w": "F32"}).values()
    assert str(found.dtype) == f"torch.{value.dtype}"
    assert cast({"new": np.zeros(2)}, {})["new"].dtype == torch.float64
    assert not caplog.records


@pytest.mark.parametrize("wanted", ["F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_a_number_that_the_dtype_cannot_hold_is_named(wanted):
    with pytest.raises(TensorError, match="'w' has float64 numbers that the model's dtype"):
        cast({"w": np.array([1.0, 1e300])}, {"w": wanted})


def test_infinity_stays_infinity():
    mask = np.array([0, -np.inf, np.nan])
    for dtype in ("F32", "F16", "BF16", "F8_E5M2"):
        found = cast({"mask": mask}, {"mask": dtype})["mask"].float()
        assert found[:2].tolist() == [0, -np.inf]
        assert found[2].isnan()
