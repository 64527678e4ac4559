"""Flower's SuperLink: an app of the message API on a SuperLink that keeps all in memory, and a SuperNode a client.

Both are started with Flower's own commands. They look for tasks 40 times a second together, rather than each once a
second; Flower's other waiting times cannot be set.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from peers.common import Workload, free_port, tell, tell_end, tell_round, touch, wait_for_port

APP = """
[project]
name = "echo"
version = "1.0.0"
description = "Sends the model back"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "echo.app:server_app"
clientapp = "echo.app:client_app"

[tool.flwr.app.config]
clients = {clients}
megabytes = {megabytes}
rounds = {rounds}
"""
MODULE = """
from peers import flower_superlink

server_app = flower_superlink.server_app
client_app = flower_superlink.client_app
"""
CONNECTION = """
[superlink]
default = "benchmark"

[superlink.benchmark]
address = "127.0.0.1:{port}"
insecure = true
"""

server_app = ServerApp()
client_app = ClientApp()


class Strategy(FedAvg):
    """FedAvg that tells of rounds."""

    def configure_train(self, *arguments: Any, **words: Any) -> Any:
        """Called when a round starts."""
        tell_round()
        return super().configure_train(*arguments, **words)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Called when a round is over; Flower averages what is there."""
        replies = list(replies)
        if errors := [reply.error for reply in replies if reply.has_error()]:
            tell("failed", f"{len(errors)} of {len(replies)} clients failed in a round: {errors[0].reason}")
        return super().aggregate_train(server_round, replies)


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    config = context.run_config
    workload = Workload(config["clients"], config["megabytes"], config["rounds"], Path())
    strategy = Strategy(fraction_evaluate=0.0, min_train_nodes=workload.clients, min_available_nodes=workload.clients)
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(workload.layers()), num_rounds=workload.rounds)
    tell_end()
    tell("first", result.arrays.to_numpy_ndarrays()[0][0])


@client_app.train()
def echo(message: Message, context: Context) -> Message:
    layers = message.content["arrays"].to_numpy_ndarrays()
    touch(layers, context.node_config["number"])
    content = RecordDict({"arrays": ArrayRecord(layers), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content=content, reply_to=message)


def write_app(workload: Workload) -> Path:
    app = workload.folder / "app"
    (app / "echo").mkdir(parents=True)
    (app / "echo" / "__init__.py").touch()
    (app / "echo" / "app.py").write_text(MODULE)
    (app / "pyproject.toml").write_text(
        APP.format(clients=workload.clients, megabytes=workload.megabytes, rounds=workload.rounds)
    )
    return app


def run(workload: Workload) -> None:
    """Runs one training."""
    tell("version", version("flwr"))
    home = workload.folder / "home"
    home.mkdir()
    port = free_port()
    (home / "config.toml").write_text(CONNECTION.format(port=port))
    commands = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(workload.clients / 40),
    }
    with ExitStack() as running:

        def start(word: str, *command: str) -> None:
            process = subprocess.Popen(command, env=environment)
            running.callback(process.wait)
            running.callback(process.terminate)
            tell(word, process.pid)

        words = ("--insecure", "--host", "127.0.0.1", "--port")
        start("server", "flower-superlink", *words, str(port), "--disable-runtime-dependency-installation")
        wait_for_port(port)
        for number in range(workload.clients):
            node = ("--superlink", f"127.0.0.1:{port}", "--node-config", f"number={number}")
            start("client", "flower-supernode", *words, str(free_port()), *node)
        subprocess.run(["flwr", "run", str(write_app(workload))], env=environment, check=True)
        # The driver ends all when it knows what it wants to know.
        time.sleep(3600)
