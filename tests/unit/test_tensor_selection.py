"""Globs select tensors as fnmatch does; each tensor is trained, private or inherited."""

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedround_client.tensor_selection import TensorSelection as ClientSelection
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.model import Dtype, TensorSpec
from fedround_server.domain.tensor_selection import ALL_TENSORS, TensorSelection, matcher, unmatched

SPEC = TensorSpec(Dtype.F32, (2,))
MODEL = dict.fromkeys(("body.0.weight", "body.0.lora_A", "body.0.lora_B", "bn.mean", "head"), SPEC)
ALPHABET = "ab.*?[]!-^\\/é"
texts = st.text(ALPHABET, min_size=1, max_size=8)


@given(st.lists(texts, max_size=4), texts)
def test_globs_match_as_fnmatch_does(globs: list[str], name: str) -> None:
    assert matcher(tuple(globs))(name) == any(fnmatchcase(name, glob) for glob in globs)
    assert unmatched(globs, [name]) == [glob for glob in globs if not fnmatchcase(name, glob)]


@given(st.lists(texts, max_size=3), st.lists(texts, max_size=3), st.lists(texts, unique=True, max_size=6))
def test_server_and_sdk_select_alike(trainable: list[str], private: list[str], names: list[str]) -> None:
    server = TensorSelection(tuple(trainable), tuple(private))
    client = ClientSelection(tuple(trainable), tuple(private))
    model = dict.fromkeys(names, SPEC)
    assert list(server.trained(model)) == [name for name in names if client.trains(name)]
    assert server.private_names(model) == {name for name in names if client.keeps(name)}
    assert server.is_partial == client.is_partial


@pytest.mark.parametrize(
    ("selection", "trained"),
    [
        (ALL_TENSORS, list(MODEL)),
        (TensorSelection(("*.lora_?",)), ["body.0.lora_A", "body.0.lora_B"]),
        (TensorSelection(private=("bn.*",)), ["body.0.weight", "body.0.lora_A", "body.0.lora_B", "head"]),
        (TensorSelection(("head", "*weight"), ("bn.*",)), ["body.0.weight", "head"]),
        (TensorSelection(private=("own.*",), external_base_sha256="ab" * 32), list(MODEL)),
    ],
)
def test_a_selection_that_fits(selection: TensorSelection, trained: list[str]) -> None:
    selection.check(MODEL)
    assert list(selection.trained(MODEL)) == trained


@pytest.mark.parametrize(
    ("selection", "field", "words"),
    [
        (TensorSelection(("head", "tail")), "trainable", "'tail': no tensor of the model matches, which has 'bn.mean'"),
        (TensorSelection(private=("bm.*",)), "private", "'bm.*': no tensor of the model matches"),
        (TensorSelection(("b*",), ("bn.*",)), "private", "both match 'bn.mean': a tensor is either private"),
        (TensorSelection(private=("*",)), "private", "matches every tensor of the model: leave some"),
    ],
)
def test_a_selection_that_does_not_fit(selection: TensorSelection, field: str, words: str) -> None:
    with pytest.raises(FieldInvalid) as caught:
        selection.check(MODEL)
    assert caught.value.field == f"spec.tensors.{field}"
    assert words in str(caught.value)
