"""Simulations: a server and many clients on this machine."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from fedround.v1.event_pb2 import Event
from fedround.v1.training_pb2 import Cohort, Training
from fedround_client.client import Client, connect
from fedround_client.embedded.processes import ProcessExited, ProcessGroup
from fedround_client.embedded.server import Server
from fedround_client.errors import TrainingFailed, from_event
from fedround_client.payload import ModelSource
from fedround_client.round_number import planned_rounds
from fedround_client.simulation.engines import EngineName, check_not_a_worker, failure, open_engine
from fedround_client.simulation.functions import MakeClient, SimulationFailed, check_portable, load
from fedround_client.simulation.history import Failure, History, RoundRecord
from fedround_client.simulation.results import write_results
from fedround_client.simulation.worker import Work, run_clients, warm_up
from fedround_client.subscription import FINAL_EVENTS
from fedround_client.tensor_types import Framework

MAX_CLIENTS = 10_000
"""How many clients a training may have."""
TICK_SECONDS = 0.5
SERVER_OPTIONS = (
    "--log-level=warning",
    # All calls come from this machine, and from clients that wait for each other.
    "--max-calls-per-second-per-user=1000000",
    "--max-calls-per-second=1000000",
    "--max-waiting-calls=100000",
)

Listener = Callable[[History], None]
"""Called after each event of the training with the history so far."""


@dataclass(frozen=True)
class Simulation:
    """The result of a simulation.

    Attributes:
        training: The training at its end.
        model: The final model by name: numpy arrays, or torch tensors if the framework is "torch".
        model_sha256: SHA-256 of its file.
        rounds: The rounds, with their metrics.
        failures: The failures of clients.
        seconds: How long the simulation took.
    """

    training: Training
    model: dict[str, Any]
    model_sha256: str
    rounds: Sequence[RoundRecord]
    failures: Sequence[Failure]
    seconds: float


def simulate(
    make_client: MakeClient | str,
    model: ModelSource,
    *,
    clients: int,
    rounds: int,
    fraction: float | None = None,
    workers: int | None = None,
    seed: int = 0,
    engine: EngineName = "processes",
    framework: Framework | None = None,
    data_dir: str | PathLike[str] | None = None,
    output: str | PathLike[str] | None = None,
    listener: Listener | None = None,
    **training: Any,
) -> Simulation:
    """Trains a model with many simulated clients on this machine, through a real server, and returns the result.

    The server and the workers are child processes, which end with the call. The functions of a client are those that
    `Client.participate` takes. Each worker has some of the clients and runs their rounds one after the other, with one
    thread for numerical libraries. A client stays in one worker, so what its functions keep is there in its next round.

    Before `make_client` and before each round of a client, the global generators of Python, NumPy and torch are seeded
    with the seed, the index and the round. With functions that draw from these, or from generators that make_client
    seeds itself, the same arguments give the same final model on the same machine, whatever the number of workers.

    Args:
        make_client: Returns the functions of the client with an index, from 0: train, or (train, evaluate), or (train,
            evaluate, swag). Called in a worker, when a round asks the client for the first time. A function at the
            top level of a module, or its name as "module:name".
        model: The initial model, as in `Client.create_training`.
        clients: How many clients there are, at most 10,000.
        rounds: How often the training updates the global model.
        fraction: The part of the clients that each round needs, 0 < fraction <= 1, drawn with the seed; by default all.
        workers: How many worker processes there are; by default as many as this machine has processors.
        seed: The seed of the simulation.
        engine: "processes", or "ray" for tasks of Ray, which must run on this machine.
        framework: As in `Client.participate`.
        data_dir: A new or empty folder for the server's data, which stays; a temporary one by default.
        output: A folder for report.json, the plot metrics.png, model.safetensors and the processes' logs; None to
            write none.
        listener: Called after each event of the training with the history so far.
        training: Further arguments of `Client.create_training`, such as metric_names, aggregation or cohort.

    Raises:
        ValueError: A number is out of its range.
        SimulationFailed: make_client cannot be imported, raised an exception, or returned something else; or a process
            has ended.
        TrainingFailed: The training ended in ERROR, for example since no client of a round is left.
        FedroundError: The server answered with another error, for example about the training's arguments.
    """
    start = time.monotonic()
    workers = min(os.cpu_count() or 1, clients) if workers is None else workers
    _check_numbers(clients, rounds, workers, seed)
    check_not_a_worker()
    _check_machine()
    if isinstance(make_client, str):
        load(make_client)
    else:
        check_portable(make_client)
    folder = _new_folder(data_dir)
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedround-simulation-")))
        logs = temporary if output is None else Path(output) / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        processes = stack.enter_context(ProcessGroup(logs))
        options = [*SERVER_OPTIONS, f"--id-seed={seed}", *([] if folder else ["--no-sync"])]
        server = Server(processes, folder or temporary / "server", options)
        pool = open_engine(engine, workers)
        stack.callback(pool.close)
        warm = [pool.submit(warm_up, make_client) for _ in range(workers)]
        try:
            address = server.wait()
            accounts = _create_accounts(address, server.admin_token(), clients)
            with connect(address, accounts.actor_token) as actor:
                # The first round opens when all clients are connected.
                cohort = Cohort(fraction=fraction, min_available=clients, seed=seed)
                arguments: dict[str, Any] = {"name": "simulation", "cohort": cohort} | training
                created = actor.create_training(model, target_num_updates=rounds, client_ids=accounts.ids, **arguments)
                for future in warm:
                    _check(future)
                work = [
                    Work(
                        make_client,
                        address,
                        created.training_id,
                        {index: accounts.tokens[index] for index in range(worker, clients, workers)},
                        seed,
                        framework,
                        None if output is None else logs / f"worker-{worker}.log",
                        (folder or temporary) / "private",
                    )
                    for worker in range(workers)
                ]
                calls = [pool.submit(run_clients, one) for one in work]
                history = _Run(actor, processes, accounts, listener).run(created, calls)
                ended = actor.get_training(created.training_id)
                result = Simulation(
                    ended,
                    actor.download_model(ended.model_id, framework=framework or "numpy"),
                    actor.get_model(ended.model_id).sha256,
                    history.rounds,
                    history.failures,
                    time.monotonic() - start,
                )
                if output is not None:
                    write_results(result, Path(output), clients=clients, workers=workers, seed=seed)
                    actor.download_model(ended.model_id, to=Path(output) / "model.safetensors")
            if folder is None:
                processes.kill()  # faster than a shutdown, and the data is removed anyway
            return result
        except ProcessExited as error:
            raise SimulationFailed(str(error)) from None


@dataclass(frozen=True)
class _Accounts:
    """The users of a simulation; those of the clients are in the order of their indices.

    The server derives the ids from the seed and the names, in whatever order the users are created. So whom a round
    asks, and in which order updates are summed, depends on the seed only.
    """

    actor_token: str
    ids: list[str]
    tokens: list[str]


def _create_accounts(address: str, admin_token: str, clients: int) -> _Accounts:
    with connect(address, admin_token) as admin:
        _, actor_token = admin.create_user("actor", role="ACTOR")
        created = admin.create_users([f"client-{index:04d}" for index in range(clients)])
    return _Accounts(actor_token, [user_id for user_id, _ in created], [token for _, token in created])


class _Run:
    """Follows a training from its start to its end."""

    def __init__(self, actor: Client, processes: ProcessGroup, accounts: _Accounts, listener: Listener | None) -> None:
        self._actor = actor
        self._processes = processes
        self._accounts = accounts
        self._listener = listener
        self._items: SimpleQueue[Event | Future[None] | Exception] = SimpleQueue()

    def run(self, training: Training, calls: Sequence[Future[None]]) -> History:
        """Starts the training, and waits for its end and for that of the calls.

        Raises:
            SimulationFailed: A worker has failed.
            ProcessExited: The server has ended.
            FedroundError: The training has failed.
        """
        training_id = training.training_id
        indices = {user_id: index for index, user_id in enumerate(self._accounts.ids)}
        history = History(indices, planned_rounds(training.spec))
        threading.Thread(target=self._watch, args=(training_id,), name="watch", daemon=True).start()
        for call in calls:
            call.add_done_callback(self._items.put)
        self._actor.start_training(training_id)
        running, finished = len(calls), False
        while running or not finished:
            item = self._next()
            if isinstance(item, Future):
                _check(item)
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                history.add(item)
                self._raise_failure(training_id, item)
                finished = finished or item.WhichOneof("payload") in FINAL_EVENTS
                if self._listener is not None:
                    self._listener(history)
        return history

    def _next(self) -> Event | Future[None] | Exception:
        while True:
            try:
                return self._items.get(timeout=TICK_SECONDS)
            except Empty:
                self._processes.check()

    def _watch(self, training_id: str) -> None:
        try:
            for event in self._actor.watch(training_id):
                self._items.put(event)
        except Exception as error:  # raised by the main thread
            self._items.put(error)

    def _raise_failure(self, training_id: str, event: Event) -> None:
        error = from_event(event)
        if isinstance(error, TrainingFailed):
            # The training's own message names participants.
            details = self._actor.get_training(training_id).error
            raise TrainingFailed(error.code, details.reason, details.message, error.metadata)
        if error is not None:
            raise error


def _check(call: Future[None]) -> None:
    """Waits for a call.

    Raises:
        SimulationFailed: It has failed.
    """
    error = call.exception()
    if error is not None:
        raise failure(error) from None


def _check_numbers(clients: int, rounds: int, workers: int, seed: int) -> None:
    if not 1 <= clients <= MAX_CLIENTS:
        raise ValueError(f"clients is {clients}: a simulation has 1 to {MAX_CLIENTS:,} clients.")
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}: a simulation has at least 1.")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}: it must be from 0 to 2^64 - 1.")
    if not 1 <= workers <= clients:
        raise ValueError(
            f"workers is {workers}: there must be at least 1, and at most one for each of {clients} clients."
        )


def _check_machine() -> None:
    if find_spec("fcntl") is None:
        raise SimulationFailed("A simulation needs a POSIX system, such as Linux or macOS; on Windows, run it in WSL.")
    if find_spec("fedround_server") is None or find_spec("torch") is None:
        raise SimulationFailed('A simulation runs a server, not installed here: pip install "fedround[server]"')


def _new_folder(data_dir: str | PathLike[str] | None) -> Path | None:
    """Returns the folder for the server's data; None for a temporary one."""
    if data_dir is None:
        return None
    folder = Path(data_dir)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"data_dir: {folder} is not empty. Name a new folder: each simulation has a server of its own."
        )
    return folder
