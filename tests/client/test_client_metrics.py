import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedround_client import Update
from fedround_client.metrics import ALLOWED, MAX_KEPT_BYTES, MAX_LIST, MAX_METRICS, MAX_NAME, MAX_TEXT, split_metrics
from fedround_client.participation import as_report

texts = st.characters(codec="utf-8", exclude_characters="\0")
names = st.text(texts, min_size=1, max_size=MAX_NAME).filter(str.strip)
numbers = st.floats(allow_nan=False)


@given(st.dictionaries(names, numbers | st.text(texts, max_size=40) | st.lists(numbers, max_size=20), max_size=30))
def test_metrics_are_divided_by_their_kinds(metrics):
    split = split_metrics(metrics)
    lists = {name: list(value.values) for name, value in split.list_metrics.items()}
    assert split.metrics | split.text_metrics | lists == metrics
    assert len(split.metrics) + len(split.text_metrics) + len(lists) == len(metrics)


@pytest.mark.parametrize(
    "value",
    [1, True, 1.0, np.float32(1), np.int64(1), np.array(1), torch.tensor(1.0, requires_grad=True), Decimal(1)],
    ids=lambda value: type(value).__name__,
)
def test_scalars_of_all_libraries_are_numbers(value):
    assert split_metrics({"loss": value}).metrics == {"loss": 1.0}


@pytest.mark.parametrize(
    "value", [[1, 2.0], (1, 2), np.array([1, 2]), torch.tensor([1.0, 2.0]), [np.float32(1), torch.tensor(2)]], ids=repr
)
def test_arrays_of_one_dimension_are_lists(value):
    assert list(split_metrics({"recall": value}).list_metrics["recall"].values) == [1.0, 2.0]


class TensorflowLike:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def test_arrays_that_numpy_can_read_are_numbers_and_lists():
    split = split_metrics({"loss": TensorflowLike(np.array(1.0)), "recall": TensorflowLike(np.array([1.0, 2.0]))})
    assert (split.metrics, list(split.list_metrics["recall"].values)) == ({"loss": 1.0}, [1.0, 2.0])


def test_lists_may_have_numbers_that_are_not_finite():
    values = split_metrics({"recall": [0.5, math.nan, -math.inf]}).list_metrics["recall"].values
    assert [str(value) for value in values] == ["0.5", "nan", "-inf"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "NoneType"),
        ({"a": 1.0}, "dict"),
        (b"text", "bytes"),
        (1j, "complex"),
        (np.zeros((2, 2)), "list"),
        ([1.0, "text"], "str"),
        ([None], "NoneType"),
        (object(), "object"),
        ({1.0}, "set"),
    ],
)
def test_a_metric_of_another_type_is_named_with_what_is_allowed(value, kind):
    for check in (lambda metrics: Update({}, 1, metrics), lambda metrics: as_report((metrics, 1))):
        with pytest.raises(TypeError, match=f"Metric 'loss' has a value of the type {kind}") as raised:
            check({"loss": value})
        assert ALLOWED in str(raised.value)


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        ({f"m{number}": 0.5 for number in range(MAX_METRICS + 1)}, "1001 metrics; at most 1000"),
        ({"note": "x" * (MAX_TEXT + 1)}, "'note' has 1001 characters; at most 1000"),
        ({"recall": [0.5] * (MAX_LIST + 1)}, "'recall' has 1001 numbers; at most 1000"),
        ({f"m{number}": "é" * MAX_TEXT for number in range(40)}, f"80000 bytes; at most {MAX_KEPT_BYTES}"),
        ({"x" * (MAX_NAME + 1): 0.5}, "has 101 characters"),
        ({" ": 0.5}, "has 1 characters"),
        ({"note": "a\0"}, "Metric 'note' contains NUL"),
        ({"note": "\ud800"}, "Metric 'note' has characters that UTF-8 does not have"),
        ({"a\0": 0.5}, "The name .* of a metric contains NUL"),
    ],
)
def test_too_many_or_too_long_metrics_are_found_before_they_are_sent(metrics, text):
    with pytest.raises(ValueError, match=text):
        Update({}, 1, metrics)


@pytest.mark.parametrize("metrics", [[0.5], 0.5, "loss"])
def test_metrics_are_a_dict(metrics):
    with pytest.raises(TypeError, match=r"The metrics are a .*, not a dict"):
        Update({}, 1, metrics)


def test_names_of_metrics_are_strings():
    with pytest.raises(TypeError, match="The name 3 of a metric is a int"):
        Update({}, 1, {3: 0.5})


def test_numbers_that_no_float_holds_are_named():
    with pytest.raises(TypeError, match="Metric 'loss' is not a number"):
        Update({}, 1, {"loss": 10**400})


def test_a_thousand_metrics_are_allowed():
    assert len(split_metrics({f"m{number}": 0.5 for number in range(MAX_METRICS)}).metrics) == MAX_METRICS
