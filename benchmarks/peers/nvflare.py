"""NVFlare as it comes: FedAvg in its simulator, which runs each client in a process of its own; all in memory."""

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.job_config.api import FedJob

from peers.common import Workload, tell, tell_end, tell_round, touch


class Controller(FedAvg):
    """FedAvg that makes its model, keeps it in memory, and tells of rounds."""

    def __init__(self, clients: int, megabytes: float, rounds: int, period: float | None) -> None:
        looking = {} if period is None else {"task_check_period": period}
        super().__init__(num_clients=clients, num_rounds=rounds, persistor_id="", **looking)
        self.clients = clients
        self.megabytes = megabytes
        self.rounds = rounds
        self.period = period

    def run(self) -> None:
        """Called once."""
        tell("server", os.getpid())
        super().run()
        tell_end()
        tell("first", self.last.params["0"][0])

    def load_model(self) -> FLModel:
        """Called at the start."""
        layers = Workload(self.clients, self.megabytes, self.rounds, Path()).layers()
        return FLModel(params={str(number): layer for number, layer in enumerate(layers)})

    def save_model(self, model: FLModel) -> None:
        """Called at the end of a round."""
        self.last = model

    def send_model(self, *arguments: Any, **words: Any) -> None:
        """Called when a round starts."""
        tell_round()
        super().send_model(*arguments, **words)


class Echo(Executor):
    """Sends the model back."""

    def __init__(self) -> None:
        super().__init__()
        self._told = False

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Called in each round."""
        if not self._told:
            tell("client", os.getpid())
            self._told = True
        model = FLModelUtils.from_shareable(shareable)
        touch([model.params["0"]], int(fl_ctx.get_identity_name().rpartition("-")[2]) - 1)
        return FLModelUtils.to_shareable(FLModel(params_type="FULL", params=model.params))


def run(workload: Workload, period: float | None = None) -> None:
    """Runs one training.

    Args:
        workload: What there is to do.
        period: Seconds after which a client asks for the next task, and the server looks after them; None leaves both
            to NVFlare. The simulator's own waiting times cannot be set.
    """
    tell("version", version("nvflare"))
    job = FedJob(name="benchmark", min_clients=workload.clients)
    job.to_server(Controller(workload.clients, workload.megabytes, workload.rounds, period))
    asking = {} if period is None else {"task_request_interval": period}
    job.to_server({"server": {"heart_beat_timeout": 600, **asking}})
    job.to_clients(Echo(), tasks=["train"])
    # A task that arrives late is lost, and the round hangs; by default that is after 5 s.
    job.to_clients({"get_task_timeout": 60.0, "submit_task_result_timeout": 60.0})
    workspace = workload.folder / "workspace"
    (workspace / "local").mkdir(parents=True)
    # The components here are none of NVFlare's own.
    (workspace / "local" / "resources.json").write_text(json.dumps({"format_version": 2, "class_allow_list": ["*"]}))
    job.simulator_run(str(workspace), n_clients=workload.clients, threads=workload.clients)
