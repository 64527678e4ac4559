import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedround_client import TensorError, from_safetensors, to_safetensors

NUMPY = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_]
TORCH = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]

shapes = arrays.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=5)
dtypes = st.sampled_from(NUMPY).flatmap(
    lambda kind: st.sampled_from([np.dtype(kind), np.dtype(kind).newbyteorder(">")])
)
states = st.dictionaries(st.text(min_size=1, max_size=20), arrays.arrays(dtypes, shapes), min_size=1, max_size=4)


@settings(max_examples=150)
@given(states)
def test_arrays_come_back_as_they_were(state):
    back = from_safetensors(to_safetensors(state))
    assert back.keys() == state.keys()
    for name, array in state.items():
        assert back[name].shape == array.shape
        assert back[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(back[name], array)
        assert back[name].flags.writeable


@settings(max_examples=80)
@given(st.sampled_from(TORCH), shapes, st.integers(0, 2**31))
def test_tensors_come_back_bit_for_bit(dtype, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(shape, generator=generator) * 50).to(dtype)
    state = {"plain": tensor, "turned": tensor.transpose(0, -1) if tensor.dim() > 1 else tensor}
    back = from_safetensors(to_safetensors(state), "torch")
    for name, given_tensor in state.items():
        assert back[name].dtype == dtype
        assert back[name].shape == given_tensor.shape
        assert torch.equal(back[name], given_tensor)


def test_views_parameters_and_shared_tensors():
    weight = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    state = {"a": weight, "tied": weight, "column": weight[:, 1], "numpy": np.arange(6.0).reshape(2, 3).T}
    back = from_safetensors(to_safetensors(state))
    np.testing.assert_array_equal(back["a"], back["tied"])
    np.testing.assert_array_equal(back["column"], [1, 5, 9])
    np.testing.assert_array_equal(back["numpy"], [[0, 3], [1, 4], [2, 5]])


def test_torch_and_numpy_write_the_same_file():
    array = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    assert to_safetensors({"w": array}) == to_safetensors({"w": torch.from_numpy(array)})


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({}, "at least one tensor"),
        ({"w": np.zeros((0, 3))}, "'w' is empty"),
        ({"w": torch.zeros(0)}, "'w' is empty"),
        ({"w": np.zeros(3, complex)}, "'w' has the dtype complex128"),
        ({"w": torch.zeros(3, dtype=torch.complex64)}, "'w' has the dtype complex64"),
        ({"w": np.zeros(3, np.uint32)}, "dtype uint32"),
        ({"w": np.array(["text"])}, "dtype str"),
        ({"w": np.array([object()])}, "dtype object"),
        ({"w": [1.0, 2.0]}, "'w' is a list"),
        ({"w": torch.zeros(2), "v": "text"}, "'v' is a str"),
        ({1: np.zeros(3)}, "key 1 is not a string"),
        ({"w": torch.zeros(2, 2).to_sparse()}, "'w' is sparse"),
        ({"w": torch.zeros(2, device="meta")}, "without data"),
    ],
)
def test_what_is_no_model_is_refused_by_name(state, text):
    with pytest.raises(TensorError, match=text):
        to_safetensors(state)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 and so on", bytes(100)])
def test_what_is_no_safetensors_is_refused(data):
    with pytest.raises(TensorError, match="not a safetensors file"):
        from_safetensors(data)


def test_bfloat16_without_torch_names_the_way_out():
    data = to_safetensors({"w": torch.ones(2, dtype=torch.bfloat16)})
    with pytest.raises(TensorError, match=r'BF16.*framework="torch"'):
        from_safetensors(data)
