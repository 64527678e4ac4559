"""What is trained, and on what: replace both by your own."""

import torch
from torch import nn


def make_network() -> nn.Module:
    """Returns the network, with the weights that the training starts from."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))


def load_data() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the inputs and labels of this participant: here, points inside and outside of a circle."""
    inputs = torch.rand(500, 2, generator=torch.Generator().manual_seed(torch.seed())) * 2 - 1
    return inputs, (inputs.square().sum(dim=1) < 0.6).long()
