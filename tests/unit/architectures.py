"""What an operator might register: factories for the tests of predictions, good and bad ones."""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

GIB = 1 << 30


def linear() -> nn.Module:
    """Three features, two classes."""
    return nn.Linear(3, 2).double()


def dropout() -> nn.Module:
    """Dropout on the inputs of a linear model."""
    return nn.Sequential(nn.Dropout(0.25), nn.Linear(3, 2)).double()


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5), nn.BatchNorm1d(2)).double()


def without_effect() -> nn.Module:
    return nn.Sequential(nn.Dropout(0.0), nn.Linear(3, 2)).double()


def in_place() -> nn.Module:
    return nn.Sequential(_Double(), nn.Linear(3, 2).double())


def scalar() -> nn.Module:
    """One number an input."""
    return nn.Sequential(nn.Linear(3, 1).double(), nn.Flatten(0))


def images() -> nn.Module:
    """Declares what it takes: bytes of 2 x 2, of which it makes numbers from 0 to 1."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 1).double())
    network.input_shape = (2, 2)  # type: ignore[assignment]
    network.preprocess = lambda pixels: pixels.double() / 255  # type: ignore[assignment]
    return network


def preprocessing(preprocess: Callable[[Tensor], object]) -> nn.Module:
    network = linear()
    network.preprocess = preprocess  # type: ignore[assignment]
    return network


def preprocess_fails() -> nn.Module:
    return preprocessing(_fail)


def preprocess_loses_rows() -> nn.Module:
    return preprocessing(lambda inputs: inputs[1:])


def preprocess_sums() -> nn.Module:
    return preprocessing(torch.sum)


def preprocess_returns_none() -> nn.Module:
    return preprocessing(lambda inputs: None)


def fails() -> nn.Module:
    raise KeyError("the factory's own words")


def exits() -> nn.Module:
    sys.exit("a library is missing")


def makes_a_list() -> object:
    return [linear()]


def raises_what_no_other_process_can_read() -> nn.Module:
    return _Calls(_fail)


def loses_rows() -> nn.Module:
    return _Calls(lambda inputs: inputs[1:])


def sums() -> nn.Module:
    return _Calls(torch.sum)


def returns_a_list() -> nn.Module:
    return _Calls(lambda inputs: [inputs])


def never_ends() -> nn.Module:
    return _Calls(_wait_for_ever)


def dies() -> nn.Module:
    return _Calls(lambda inputs: os._exit(1))


def takes_memory_of_torch() -> nn.Module:
    return _Calls(lambda inputs: torch.ones(GIB))


def takes_memory_of_numpy() -> nn.Module:
    return _Calls(lambda inputs: np.ones(GIB))


def takes_memory_of_python() -> nn.Module:
    return _Calls(lambda inputs: bytearray(GIB))


def takes_memory_when_built() -> nn.Module:
    return nn.Linear(1 << 14, 1 << 16)


not_callable = 3


class _Calls(nn.Module):
    """Has linear's weights, and does something else with its inputs."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self._function = function

    def forward(self, inputs: Tensor) -> object:
        return self._function(inputs)


class _Double(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mul_(2)


class _Secret(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def _wait_for_ever(inputs: Tensor) -> None:
    if begun := os.environ.get("BEGUN"):
        Path(begun).touch()
    threading.Event().wait()


def _fail(inputs: Tensor) -> Tensor:
    raise _Secret("some", "words")
