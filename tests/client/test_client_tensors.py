import json
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedround_client import TensorError, from_safetensors, to_safetensors
from fedround_client.payload import CHUNK, Payload
from fedround_client.safetensors_reader import SafetensorsReader
from fedround_client.safetensors_stream import SafetensorsStream
from fedround_client.tensors import array_sources, copy_state

NUMPY = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_]
NUMPY += [np.complex64, np.uint64, np.uint32, np.uint16]
TORCH = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
TORCH += [torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint64, torch.uint32, torch.uint16]

shapes = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
dtypes = st.sampled_from(NUMPY).flatmap(
    lambda kind: st.sampled_from([np.dtype(kind), np.dtype(kind).newbyteorder(">")])
)
states = st.dictionaries(st.text(min_size=1, max_size=20), arrays.arrays(dtypes, shapes), min_size=1, max_size=4)


@settings(max_examples=150)
@given(states)
def test_arrays_survive_a_round_trip(state):
    back = from_safetensors(to_safetensors(state))
    assert back.keys() == state.keys()
    for name, array in state.items():
        assert back[name].shape == array.shape
        assert back[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(back[name], array)
        assert back[name].flags.writeable


@settings(max_examples=150)
@given(states)
def test_the_file_equals_that_of_the_reference_implementation(state):
    native = {name: array.astype(array.dtype.newbyteorder("=")) for name, array in state.items()}
    assert to_safetensors(state) == safetensors.numpy.save(native)


@settings(max_examples=100)
@given(states, st.data())
def test_a_file_is_read_from_any_offset_and_in_any_pieces(state, data):
    file = to_safetensors(state)
    offset = data.draw(st.integers(0, len(file)))
    assert b"".join(SafetensorsStream(array_sources(state)).pieces(offset)) == file[offset:]
    arrival, cuts = SafetensorsReader(), data.draw(st.lists(st.integers(0, len(file))))
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(file)], strict=True):
        arrival.write(file[start:end])
    back = arrival.tensors()
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array)


@settings(max_examples=80)
@given(st.sampled_from(TORCH), shapes, st.integers(0, 2**31))
def test_tensors_survive_a_round_trip_bit_for_bit(dtype, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=generator).mul(50).abs().to(dtype)
    state = {"plain": tensor, "turned": tensor.transpose(0, -1) if tensor.dim() > 1 else tensor}
    back = from_safetensors(to_safetensors(state), "torch")
    for name, given_tensor in state.items():
        assert back[name].dtype == dtype
        assert back[name].shape == given_tensor.shape
        # torch compares neither float8 nor wide unsigned integers.
        assert back[name].flatten().tolist() == given_tensor.flatten().tolist()


def test_views_parameters_and_shared_tensors_are_written():
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
        ({"w": np.zeros(3, complex)}, r"'w' has the dtype complex128.*torch.view_as_real\(tensor\)"),
        ({"w": torch.zeros(3, dtype=torch.complex128)}, "'w' has the dtype complex128.*send complex64"),
        ({"w": np.zeros(3, np.longdouble)}, "dtype (float128|longdouble)"),
        ({"w": np.array(["text"])}, "dtype str"),
        ({"w": np.array([object()])}, "dtype object"),
        ({"w": [1.0, 2.0]}, "'w' is a list"),
        ({"w": torch.zeros(2), "v": "text"}, "'v' is a str"),
        ({1: np.zeros(3)}, "key 1 is not a string"),
        ({"w": torch.zeros(2, 2).to_sparse()}, "'w' is sparse"),
        ({"w": torch.zeros(2, device="meta")}, "without data"),
    ],
)
def test_values_that_are_not_tensors_are_rejected_by_name(state, text):
    with pytest.raises(TensorError, match=text):
        to_safetensors(state)


def a_file(header, size=0):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


def described(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 and so on",
        bytes(100),
        a_file(b"[" * 100_000),
        a_file(b"\xff\xff"),
        a_file([]),
        a_file({"w": 1}),
        a_file({"w": {"dtype": "F32", "shape": [2]}}),
        a_file({"w": described([2], 0, 8)}, 7),
        a_file({"w": described([2], 0, 8)}, 9),
        a_file({"w": described([2], 0, 12)}, 12),
        a_file({"w": described([2], 4, 12)}, 12),
        a_file({"w": described([2], 0, 8), "v": described([1], 4, 8)}, 8),
        a_file({"w": described([-2], 0, 8)}, 8),
        a_file({"w": described([True, 2], 0, 8)}, 8),
        a_file({"w": described([2.0], 0, 8)}, 8),
        a_file({"w": described([2], 0, 8, "F33")}, 8),
        a_file({"w": described([2], 0, 8, None)}, 8),
    ],
    ids=lambda data: repr(data[:60]),
)
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_other_bytes_are_rejected(data, framework):
    with pytest.raises(TensorError, match="not a safetensors file"):
        from_safetensors(data, framework)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("shape", [[1 << 60], [1 << 70], [1] * 100, [1 << 62, 1 << 62]])
def test_tensors_too_large_for_memory_are_rejected_by_name(framework, shape):
    size = 4 * int(np.prod([int(side) for side in shape], dtype=object))
    with pytest.raises(TensorError, match=r"'w' does not fit into memory|not a safetensors file: it ends early"):
        from_safetensors(a_file({"w": described(shape, 0, size)}), framework)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_files_of_the_reference_implementation_are_read(framework):
    state = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "none": np.zeros((0, 3)), "n": np.array(7, np.uint16)}
    file = safetensors.numpy.save(state, metadata={"format": "pt"})
    back = from_safetensors(file, framework)
    for name, array in state.items():
        np.testing.assert_array_equal(np.asarray(back[name]), array)


def test_arrays_are_aligned_even_if_the_file_is_not():
    header = (
        b'{"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"F64","shape":[2],"data_offsets":[1,17]}}'
    )
    back = from_safetensors(a_file(header, 17))
    assert back["w"].flags.aligned
    assert from_safetensors(a_file(header, 17), "torch")["w"].sum() == 0


@contextmanager
def memory_of(most):
    """No more than so many bytes are taken at once during the block."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_contiguous_tensors_are_copied_one_chunk_at_a_time(kind):
    state = {f"w{number}": kind(np.ones(1_500_000, np.float32)) for number in range(8)}
    with memory_of(4 * CHUNK):
        payload = Payload.of(state)
        assert sum(len(chunk) for chunk, _ in payload.chunks(0)) == payload.size_bytes == 48_000_592


def test_other_tensors_are_copied_one_at_a_time():
    state = {f"w{number}": np.ones((1500, 1000), np.float32).T for number in range(8)}
    with memory_of(6_000_000 + 4 * CHUNK):
        payload = Payload.of(state)
        assert sum(len(chunk) for chunk, _ in payload.chunks(0)) == payload.size_bytes


def test_a_file_is_read_directly_into_its_tensors():
    state = {f"w{number}": np.full(1_500_000, number, np.float32) for number in range(8)}
    file = to_safetensors(state)
    with memory_of(len(file) + CHUNK):
        back = from_safetensors(file)
    np.testing.assert_array_equal(back["w7"], state["w7"])
    with memory_of(len(file) + CHUNK):
        again = copy_state(state, "numpy")
    again["w7"] += 1
    assert state["w7"][0] == 7


def test_bfloat16_in_numpy_is_rejected_with_advice():
    data = to_safetensors({"w": torch.ones(2, dtype=torch.bfloat16)})
    with pytest.raises(TensorError, match=r'BF16.*framework="torch"'):
        from_safetensors(data)
