import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedround_client import TensorError, from_safetensors, to_safetensors
from fedround_client.payload import Payload
from fedround_client.state_dict import MODEL, flatten

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
NETWORK = torch.nn.Linear(2, 2)


class KerasModel:
    def get_weights(self):
        return [ARRAY]


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ([ARRAY], "this is a list: give each array a name"),
        ((ARRAY,), "this is a tuple: give each array a name"),
        (ARRAY, 'this is a ndarray: give the array a name: {"weight": array}'),
        (torch.zeros(2), "this is a Tensor: give the array a name"),
        (NETWORK, "this is a Linear: pass model.state_dict()"),
        (NETWORK.named_parameters(), "this is a generator: pass a dict"),
        (KerasModel(), "this is a KerasModel: name its weights"),
        (b"bytes", "this is a bytes: write the file to the disk"),
        (3, "this is a int"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_model_is_told_what_one_is(value, advice):
    assert_advises(value, advice)


def assert_advises(value, advice):
    for write in (to_safetensors, Payload.of):
        with pytest.raises(TensorError) as raised:
            write(value)
        assert MODEL in str(raised.value)
        assert advice in str(raised.value)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"model": NETWORK.state_dict(), "epoch": 3}, "'epoch' is a int, not an array.*of a checkpoint"),
        ({"w": "path.safetensors"}, "'w' is a str, not an array"),
        ({"a": {"b": [1.0]}}, "'a/b' is a list"),
        ({"a/b": ARRAY, "a": {"b": ARRAY}}, "two tensors with the name 'a/b'"),
        ({"a": {}}, "at least one tensor"),
    ],
)
def test_a_state_dict_with_other_values_is_told_which(state, text):
    with pytest.raises(TensorError, match=text):
        to_safetensors(state)


def test_an_optimizer_and_its_state_are_no_model():
    # Not parameters of the tests above: for its first optimizer torch imports seconds of code, in each process that
    # collects tests.
    optimizer = torch.optim.Adam(NETWORK.parameters())
    assert_advises(optimizer, "this is a Adam: pass that of the network")
    with pytest.raises(TensorError, match="This is the state of an optimizer"):
        to_safetensors(optimizer.state_dict())
    with pytest.raises(TensorError, match="'adam' is the state of an optimizer"):
        to_safetensors({"net": NETWORK.state_dict(), "adam": optimizer.state_dict()})


nested = st.recursive(
    st.just(ARRAY),
    lambda inner: st.dictionaries(st.text("abc", min_size=1), inner, min_size=1, max_size=3),
    max_leaves=8,
).filter(lambda value: isinstance(value, dict))


def lookup(state, name):
    for key in name.split("/"):
        state = state[key]
    return state


@given(nested)
def test_the_names_of_nested_dicts_are_joined_by_slashes(state):
    flat = flatten(state)
    assert all(lookup(state, name) is value for name, value in flat.items())
    assert from_safetensors(to_safetensors(state)).keys() == flat.keys()


class JaxLike:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class DlpackOnly:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class OnADevice:
    def __array__(self, dtype=None, copy=None):
        raise TypeError("use .get()")


@pytest.mark.parametrize("library", [JaxLike, DlpackOnly])
def test_arrays_of_other_libraries_are_read(library):
    assert to_safetensors({"w": library(ARRAY)}) == to_safetensors({"w": ARRAY})


def test_an_array_that_numpy_cannot_read_is_named():
    with pytest.raises(TensorError, match=r"numpy cannot read 'w', a OnADevice: use .get\(\)"):
        to_safetensors({"w": OnADevice()})


def test_a_path_that_does_not_exist_is_told_what_a_model_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="A model is a dict of arrays by name") as raised:
        Payload.of(tmp_path / "none.safetensors")
    assert raised.value.filename == str(tmp_path / "none.safetensors")
    with pytest.raises(IsADirectoryError, match="A model is a dict of arrays by name"):
        Payload.of(tmp_path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5, "zip"])
def test_a_pickle_is_told_to_convert(tmp_path, protocol):
    path = tmp_path / "net.pt"
    if protocol == "zip":
        torch.save(NETWORK.state_dict(), path)
    else:
        path.write_bytes(pickle.dumps({"w": [0.0] * 10}, protocol=protocol))
    with pytest.raises(TensorError, match=r"net.pt is a pickle.*`fedround convert .*net.pt`"):
        Payload.of(path)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(100), b"\x10\x00\x00\x00\x00\x00\x00\x00{", b"e" * 100])
def test_a_file_of_another_format_is_told_what_a_model_is(tmp_path, content):
    path = tmp_path / "net"
    path.write_bytes(content)
    with pytest.raises(TensorError, match=r"is not a safetensors file\. A model is"):
        Payload.of(path)


@given(st.sampled_from([0x280, 0x380, 0x480, 0x580]))
def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("files") / "net"
    file = to_safetensors({"w": ARRAY})
    size = int.from_bytes(file[:8], "little")
    path.write_bytes(length.to_bytes(8, "little") + file[8 : 8 + size].ljust(length) + file[8 + size :])
    assert Payload.of(path).size_bytes == len(file) + length - size
