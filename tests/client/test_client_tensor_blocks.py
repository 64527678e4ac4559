"""Small tensors that share memory when a file is read, and behave as if they did not."""

import copy
import io

import numpy as np
import pytest
import torch

from fedround_client import from_safetensors, to_safetensors
from fedround_client.safetensors_header import TensorInfo
from fedround_client.tensor_blocks import BLOCK_BYTES, SMALL_BYTES, divide
from fedround_client.tensors import array_sources


def infos(*sizes, dtype="U8"):
    return tuple(TensorInfo(str(number), dtype, (size,)) for number, size in enumerate(sizes))


def grouped(tensors):
    return [[info.name for info, _ in block.tensors] for block in divide(tensors)]


def test_small_tensors_share_a_block_and_large_ones_do_not():
    assert grouped(infos(1, 2, SMALL_BYTES, 3, 0, 4)) == [["0", "1"], ["2"], ["3"], ["4"], ["5"]]
    assert grouped(()) == []


def test_a_block_is_no_larger_than_its_limit():
    blocks = divide(infos(*[SMALL_BYTES - 1] * 40))
    assert len(blocks) == 3
    assert all(block.num_bytes <= BLOCK_BYTES for block in blocks)


def test_each_tensor_of_a_block_is_aligned():
    tensors = (TensorInfo("a", "U8", (3,)), TensorInfo("b", "F32", (1,)), TensorInfo("c", "F32", (1,)))
    assert grouped(tensors) == [["a"], ["b", "c"]]


@pytest.mark.parametrize("sizes", [(3, 4), (BLOCK_BYTES,)])
def test_arrays_have_the_dtypes_of_numpy_itself(sizes):
    model = {str(number): np.ones(size, np.float32) for number, size in enumerate(sizes)}
    for array in from_safetensors(to_safetensors(model)).values():
        assert array.dtype.isbuiltin == 1


def test_arrays_that_share_a_block_are_written_one_by_one():
    read = from_safetensors(to_safetensors({"a": np.zeros(3, np.float32), "b": np.zeros((), np.int64)}))
    read["a"] += 1
    assert read["b"] == 0
    assert read["b"].shape == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.complex64])
def test_torch_tensors_that_share_a_block_have_storages_of_their_own(dtype):
    state = {"a": torch.ones(4, 2).to(dtype), "b": torch.ones(()).to(dtype), "c": torch.ones(2).to(dtype)}
    read = from_safetensors(to_safetensors(state), "torch")
    for name, tensor in read.items():
        assert (tensor.dtype, tensor.shape) == (state[name].dtype, state[name].shape)
        assert torch.equal(tensor.view(-1).view(torch.uint8), state[name].view(-1).view(torch.uint8))
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert copy.deepcopy(tensor).untyped_storage().nbytes() == tensor.nbytes
    file = io.BytesIO()
    torch.save(read["b"], file)
    assert len(file.getvalue()) < 3000


def test_a_change_of_a_tensor_is_none_of_another_one_for_autograd():
    read = from_safetensors(to_safetensors({"mean": torch.zeros(2), "w": torch.ones(2)}), "torch")
    loss = (read["w"].requires_grad_() ** 2).sum()
    read["mean"] += 1
    loss.backward()
    assert torch.equal(read["w"].grad, torch.full((2,), 2.0))


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_what_is_not_contiguous_is_written_in_its_order(make):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    (source,) = array_sources({"w": make(array.T)})
    assert bytes(source.memory()) == array.T.tobytes()
    assert bytes(array_sources({"w": array.astype(">f4")})[0].memory()) == array.tobytes()
