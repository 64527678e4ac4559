import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedround_client import TensorError, strip_prefix
from fedround_client.prefixes import WRAPPER_PREFIXES, wrapper_prefix

states = st.dictionaries(st.text("ab.", min_size=1), st.integers(), min_size=1)
wrappers = st.lists(st.sampled_from(WRAPPER_PREFIXES), max_size=3).map("".join)


@given(states, wrappers)
def test_what_wrappers_put_before_names_is_removed(state, prefix):
    wrapped = {prefix + name: value for name, value in state.items()}
    assert wrapper_prefix(wrapped) == prefix
    assert strip_prefix(wrapped) == state
    assert strip_prefix(strip_prefix(wrapped)) == state
    if prefix:
        assert strip_prefix(wrapped, prefix) == state


@given(states, states)
def test_other_names_have_no_common_prefix(wrapped, plain):
    assert wrapper_prefix([*("module." + name for name in wrapped), *plain]) == ""


def test_the_prefixes_are_those_of_torch():
    network = torch.nn.Linear(2, 2)
    names = network.state_dict().keys()
    parallel = torch.nn.DataParallel(network)
    assert strip_prefix(parallel.state_dict()).keys() == names
    assert strip_prefix(torch.compile(network, backend="eager").state_dict()).keys() == names
    assert strip_prefix(torch.compile(parallel, backend="eager").state_dict()).keys() == names


def test_a_prefix_of_ones_own_is_removed_where_it_is():
    assert strip_prefix({"net.a": 1, "b": 2, "module.c": 3}, "net.") == {"a": 1, "b": 2, "module.c": 3}


def test_names_stay_different():
    with pytest.raises(TensorError, match="two tensors have the name 'a'"):
        strip_prefix({"a": 1, "module.a": 2})
