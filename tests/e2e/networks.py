"""Architectures for servers of the tests."""

import threading
from collections import OrderedDict

import torch
from torch import nn


def line() -> nn.Module:
    """Two features, one output."""
    network = nn.Linear(2, 1)
    network.input_shape = (2,)
    return network


def classifier() -> nn.Module:
    """Two features as bytes, three classes, with dropout."""
    layers = OrderedDict(hidden=nn.Linear(2, 8), relu=nn.ReLU(), dropout=nn.Dropout(0.5), out=nn.Linear(8, 3))
    network = nn.Sequential(layers)
    network.preprocess = lambda inputs: inputs.to(torch.float32) / 255
    return network


class Endless(nn.Linear):
    """Takes an input and never answers."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        threading.Event().wait()
        return inputs


def endless() -> nn.Module:
    """A line that is never found."""
    return Endless(2, 1)
