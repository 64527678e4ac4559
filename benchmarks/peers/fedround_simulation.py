"""fedround's simulation: a server that saves, checks and syncs each update, and clients of the SDK."""

import sys
from importlib.metadata import version
from typing import Any

import fedround_client as fr
from peers.simulated import Simulated, initial_layers, tell, train


def make_client(index: int) -> Any:
    def train_client(model: dict[str, Any], _: fr.Round) -> tuple[dict[str, Any], int]:
        return model, train(list(model.values()), index)

    return train_client


def main() -> None:
    work = Simulated.of(sys.argv[1:])
    result = fr.simulate(
        make_client,
        {f"layer{number}": layer for number, layer in enumerate(initial_layers())},
        clients=work.clients,
        fraction=work.per_round / work.clients,
        rounds=work.rounds,
        workers=work.workers,
    )
    trained = [record.arrived for record in result.rounds]
    tell(version("fedround"), trained, result.model["layer4"][0])


if __name__ == "__main__":
    main()
