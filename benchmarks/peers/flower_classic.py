"""Flower's classic gRPC server: start_server and start_client. All is in memory; nothing is checked or saved."""

from importlib.metadata import version
from typing import Any

import flwr

from peers.common import Layers, Processes, Workload, free_port, tell, tell_end, tell_round, touch, wait_for_port


class Strategy(flwr.server.strategy.FedAvg):
    """FedAvg that tells of rounds."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(
            fraction_evaluate=0.0,
            min_fit_clients=workload.clients,
            min_available_clients=workload.clients,
            initial_parameters=flwr.common.ndarrays_to_parameters(workload.layers()),
        )
        self._last = workload.rounds

    def configure_fit(self, server_round: int, *arguments: Any, **words: Any) -> Any:
        """Called when a round starts."""
        tell_round()
        return super().configure_fit(server_round, *arguments, **words)

    def evaluate(self, server_round: int, parameters: Any) -> None:
        """Called when a round is aggregated."""
        if server_round == self._last:
            tell_end()
            tell("first", flwr.common.parameters_to_ndarrays(parameters)[0][0])


class Echo(flwr.client.NumPyClient):
    """Sends the model back."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fit(self, parameters: Layers, config: object) -> tuple[Layers, int, dict[str, Any]]:
        """Called in each round."""
        touch(parameters, self._number)
        return parameters, 1, {}


def serve(workload: Workload, address: str) -> None:
    flwr.server.start_server(
        server_address=address,
        config=flwr.server.ServerConfig(num_rounds=workload.rounds),
        strategy=Strategy(workload),
    )


def take_part(number: int, address: str) -> None:
    flwr.client.start_client(server_address=address, client=Echo(number).to_client())


def run(workload: Workload) -> None:
    """Runs one training."""
    tell("version", version("flwr"))
    port = free_port()
    processes = Processes()
    processes.start("server", serve, workload, f"127.0.0.1:{port}")
    wait_for_port(port)
    for number in range(workload.clients):
        processes.start("client", take_part, number, f"127.0.0.1:{port}")
    processes.join()
