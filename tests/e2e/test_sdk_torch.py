"""Trainings of torch modules against a real server: BatchNorm, tied weights, bfloat16, and who gets tensors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedround_client as fr
from e2e.federation import federation
from servers import Server

State = dict[str, Any]


class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder transposed: one parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 4, bias=False)
        self.decoder = nn.Linear(4, 4, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(inputs))


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


def in_bfloat16() -> nn.Module:
    return with_batch_norm().to(torch.bfloat16)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def trainer(make: Callable[[], nn.Module], number: int) -> Callable[[State, fr.Round], Any]:
    network = seeded(make)
    dtype = next(network.parameters()).dtype
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(number)).to(dtype)

    def train(model: State, round_: fr.Round) -> Any:
        network.load_state_dict(model)
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        for _ in range(3):
            loss = (network(inputs) - inputs).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return network.state_dict(), len(inputs), {"loss": loss.item()}

    return train


@pytest.mark.parametrize("make", [with_batch_norm, Tied, in_bfloat16])
def test_a_module_is_trained_from_its_state_dict(server: Server, make: Callable[[], nn.Module]) -> None:
    state = seeded(make).state_dict()
    with federation(server, 2) as group:
        training = group.run(lambda number: (trainer(make, number),), state, target_num_updates=2)
        model = group.actor.download_model(training.model_id, framework="torch")
        first, second = (list(group.actor.metrics(training.model_id)), training.model_version)
    assert second == 2
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in model.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in state.items()
    }
    network = seeded(make)
    network.load_state_dict(model)
    assert any(not torch.equal(model[name], state[name]) for name in state)
    assert all(torch.isfinite(tensor.float()).all() for tensor in model.values())
    # What two participants count is the same, so the counter is that of each.
    assert {int(model[name]) for name in model if name.endswith("num_batches_tracked")} <= {6}
    assert first
    if make is Tied:
        assert torch.equal(model["encoder.weight"], model["decoder.weight"])


def kinds_seen(server: Server, model: State, framework: Any = None, version: int | None = None) -> set[type]:
    """The types of what a participant gets in two rounds."""
    seen: set[type] = set()

    def train(state: State, round_: fr.Round) -> tuple[State, int]:
        seen.update(type(value) for value in state.values())
        return state, 1

    with federation(server, 1) as group:
        training = group.actor.create_training(model, name="t", client_ids=group.ids, target_num_updates=2)
        group.actor.start_training(training.training_id)
        with group.connect(0) as client:
            client.participate(train, framework=framework)
    return seen


def test_a_training_of_tensors_hands_out_tensors_and_one_of_arrays_arrays(server: Server) -> None:
    tensors, arrays = {"w": torch.zeros(2)}, {"w": np.zeros(2, np.float32)}
    assert kinds_seen(server, tensors) == {torch.Tensor}
    assert kinds_seen(server, arrays) == {np.ndarray}
    assert kinds_seen(server, tensors, "numpy") == {np.ndarray}
    assert kinds_seen(server, arrays, "torch") == {torch.Tensor}


def test_an_error_about_arrays_says_how_to_get_tensors(server: Server) -> None:
    with federation(server, 1) as group:
        arrays = {name: tensor.numpy() for name, tensor in seeded(with_batch_norm).state_dict().items()}
        training = group.actor.create_training(arrays, name="t", client_ids=group.ids, target_num_updates=1)
        group.actor.start_training(training.training_id)
        with group.connect(0) as client, pytest.raises(RuntimeError) as error:
            client.participate(trainer(with_batch_norm, 0))
    assert ['framework="torch"' in note for note in error.value.__notes__] == [True]


def test_an_assigned_model_of_a_numpy_participant_is_a_tensor_too(server: Server) -> None:
    seen: list[list[type]] = [[], []]

    def functions(number: int) -> tuple[Any, ...]:
        def train(state: State, round_: fr.Round) -> tuple[State, int]:
            seen[number].append(type(state["w"]))
            return {"w": np.asarray(state["w"])} if number else state, 1

        return (train,)

    with federation(server, 2) as group:
        daisy = fr.FedDc(daisy_period=1, aggregation_period=3)
        group.run(functions, {"w": torch.zeros(2)}, target_num_updates=1, aggregation=daisy)
    assert seen == [[torch.Tensor] * 3] * 2
