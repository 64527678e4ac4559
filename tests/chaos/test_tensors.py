"""How the tensors of a model are compared with those that are expected."""

import math

import pytest

from chaos.tensors import Tensor, same

EXPECTED = {"weight": Tensor("F64", (2,), (1.0, 0.25))}


def moved(units: int) -> dict[str, Tensor]:
    return {"weight": Tensor("F64", (2,), (1.0 + units * math.ulp(1.0), 0.25))}


@pytest.mark.parametrize(
    ("units", "roots", "is_same"), [(0, False, True), (1, False, False), (2, True, True), (3, True, False)]
)
def test_roots_may_differ_in_the_last_places(units: int, roots: bool, is_same: bool) -> None:
    assert (same(moved(units), EXPECTED, roots=roots) is None) is is_same


def test_single_precision_is_compared_bit_by_bit() -> None:
    made, expected = ({"weight": Tensor("F32", (1,), (value,))} for value in (1.0 + 2.0**-23, 1.0))
    assert same(made, expected, roots=True) is not None
