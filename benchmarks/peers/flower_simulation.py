"""Flower's simulation, on its engine Ray: an app of the message API; all is in memory."""

import os
import sys
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from peers.simulated import Simulated, initial_layers, tell, train

server_app = ServerApp()
client_app = ClientApp()


class Strategy(FedAvg):
    """FedAvg that counts the clients of each round."""

    trained: list[int]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Called when a round is over."""
        replies = list(replies)
        self.trained.append(sum(not reply.has_error() for reply in replies))
        return super().aggregate_train(server_round, replies)


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    work = Simulated.of(sys.argv[1:])
    strategy = Strategy(
        fraction_train=work.per_round / work.clients,
        min_train_nodes=work.per_round,
        min_available_nodes=work.clients,
        fraction_evaluate=0.0,
    )
    strategy.trained = []
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(initial_layers()), num_rounds=work.rounds)
    tell(version("flwr"), strategy.trained, result.arrays.to_numpy_ndarrays()[-1][0])


@client_app.train()
def train_client(message: Message, context: Context) -> Message:
    layers = message.content["arrays"].to_numpy_ndarrays()
    examples = train(layers, int(context.node_config["partition-id"]))
    content = RecordDict({"arrays": ArrayRecord(layers), "metrics": MetricRecord({"num-examples": examples})})
    return Message(content=content, reply_to=message)


if __name__ == "__main__":
    work = Simulated.of(sys.argv[1:])
    resources = {"init_args": {"num_cpus": work.workers}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app, client_app, num_supernodes=work.clients, backend_config=resources)
