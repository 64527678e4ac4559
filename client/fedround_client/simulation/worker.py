"""A worker of a simulation: runs the rounds of its clients. One function of a client runs at a time."""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np

from fedround.v1.event_pb2 import COMPRESSION_UNSPECIFIED, Event, ModelInfo, RoundStarted
from fedround.v1.user_pb2 import User
from fedround_client.cache import ModelCache, SharedFile
from fedround_client.channel import Target
from fedround_client.clock import SystemClock
from fedround_client.logs import get_logger
from fedround_client.participant import MAX_FREED_BLOCK, TRIM_THRESHOLD, Participant
from fedround_client.participation import Callbacks, Round
from fedround_client.payload import Progress
from fedround_client.round_model import RoundModel, RoundModels
from fedround_client.round_number import round_text
from fedround_client.round_runner import RoundRunner
from fedround_client.rpc import Rpc
from fedround_client.simulation.functions import MakeClient, load, make_callbacks
from fedround_client.simulation.streams import Subscriber, subscribed
from fedround_client.subscription import FINAL_EVENTS
from fedround_client.tensor_selection import PrivateTensors, TensorSelection
from fedround_client.tensor_types import Framework
from fedround_wire.allocator import keep_freed

logger = get_logger(__name__)

Result = TypeVar("Result")

LANES = 8
"""Threads of a worker: while one client trains, others download and upload. The server commits updates together."""


@dataclass(frozen=True)
class Work:
    """What a worker does in a training.

    Attributes:
        make_client: Makes the functions of a client: a function, or "module:name".
        address: HOST:PORT of the server.
        training_id: UUID of the training.
        tokens: The tokens of its clients, by their indices.
        seed: Seed of the simulation.
        framework: As in `Client.participate`.
        log: File for what it prints and logs; None to leave both as they are.
        private_folder: Where the private tensors of the clients are kept.
    """

    make_client: MakeClient | str
    address: str
    training_id: str
    tokens: dict[int, str]
    seed: int
    framework: Framework | None
    log: Path | None
    private_folder: Path


def warm_up(make_client: MakeClient | str) -> None:
    """Imports what a worker needs, while the server starts.

    Raises:
        SimulationFailed: The module of make_client cannot be imported.
    """
    _resolve(make_client)


def run_clients(work: Work) -> None:
    """Takes part in a training as all clients of a worker, until it ends.

    A client whose function raises an exception reports that to the server, as in `Client.participate`, and takes part
    again in the next round that asks it.

    Raises:
        SimulationFailed: The functions of a client cannot be made, or the server has ended.
        FedroundError: The server answered with an error.
    """
    if work.log is not None:
        _redirect_output(work.log)
    keep_freed(MAX_FREED_BLOCK, TRIM_THRESHOLD)
    _Worker(work).run()


class _Worker:
    """The clients of a worker, in a few lanes, whose threads send and receive at the same time."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._subscribers = {index: Subscriber(index, token, str(uuid.uuid4())) for index, token in work.tokens.items()}
        functions = Functions(_resolve(work.make_client), work.seed)
        indices = list(work.tokens)
        self._caches = _Caches()
        self._lanes = [
            _Lane(work, self._subscribers, functions, self._caches, set(indices[start::LANES]))
            for start in range(LANES)
        ]
        self._lane_of = {index: lane for lane in self._lanes for index in lane.running}

    def run(self) -> None:
        """Runs rounds until the training has ended for all clients."""
        work, target = self._work, Target(self._work.address)
        with (
            closing(self._caches),
            target.open_channel() as channel,
            ThreadPoolExecutor(LANES) as threads,
            subscribed(work.address, work.training_id, self._subscribers, self._deliver, self._fail),
        ):
            rpc = Rpc(
                channel,
                token=None,
                address=work.address,
                clock=SystemClock(),
                compression=COMPRESSION_UNSPECIFIED,
                target=target,
            )
            for call in as_completed([threads.submit(lane.run, rpc) for lane in self._lanes]):
                if (error := call.exception()) is not None:
                    self._fail(error)
                    raise error

    def _deliver(self, index: int, event: Event) -> None:
        self._lane_of[index].put(index, event)

    def _fail(self, error: BaseException) -> None:
        for lane in self._lanes:
            lane.fail(error)


class _Caches:
    """The models of a worker: the first of its clients downloads a version, the others read its file."""

    def __init__(self) -> None:
        self.versions, self.bases = ModelCache(), ModelCache()
        self.lock = threading.Lock()

    def close(self) -> None:
        self.versions.close()
        self.bases.close()


class _SharedModels(RoundModels):
    """Fetches the models of a client's rounds from the caches of its worker, one client at a time."""

    def __init__(self, rpc: Rpc, framework: Framework | None, caches: _Caches, private: PrivateTensors) -> None:
        super().__init__(rpc, framework, caches.versions, caches.bases, private, None)
        self._lock = caches.lock

    def fetch(self, training_id: str, started: RoundStarted, progress: Progress | None) -> RoundModel:
        with self._lock:
            return super().fetch(training_id, started, progress)

    def open(self, info: ModelInfo, selection: TensorSelection) -> SharedFile | None:
        with self._lock:
            return super().open(info, selection)


class _Lane:
    """Some clients of a worker, whose rounds run one after the other."""

    def __init__(
        self,
        work: Work,
        subscribers: Mapping[int, Subscriber],
        functions: Functions,
        caches: _Caches,
        running: set[int],
    ) -> None:
        self.running = running
        self._caches = caches
        self._work = work
        self._subscribers = subscribers
        self._functions = functions
        self._items: SimpleQueue[tuple[int, Event]] = SimpleQueue()
        self._error: BaseException | None = None
        # Of each client, how many events have arrived, and how many were taken: each written by one thread only.
        self._arrived: Counter[int] = Counter()
        self._taken: Counter[int] = Counter()
        self._participants: dict[int, Participant] = {}

    def put(self, index: int, event: Event) -> None:
        """Adds an event of a client."""
        self._arrived[index] += 1
        self._items.put((index, event))

    def fail(self, error: BaseException) -> None:
        """Ends the lane after the round that it is in."""
        self._error = error
        self._items.put((-1, Event()))  # wakes it up

    def run(self, rpc: Rpc) -> None:
        """Handles events until the training has ended for all clients."""
        while self.running:
            index, event = self._items.get()
            if self._error is not None:
                raise self._error
            self._taken[index] += 1
            if event.WhichOneof("payload") in FINAL_EVENTS:
                self.running.discard(index)
            elif event.HasField("round_started"):
                self._run_round(index, event, rpc)

    def _run_round(self, index: int, event: Event, rpc: Rpc) -> None:
        if index not in self._participants:
            self._participants[index] = self._new_participant(index, rpc)
        # Behind a later event the round may be over, so the participant asks the server.
        is_live = self._arrived[index] == self._taken[index]
        try:
            self._participants[index].handle(event, is_live=is_live)
        except (Exception, SystemExit) as error:  # the participant has reported it to the server
            self._functions.log_failure(index, event.round_started.round, error)

    def _new_participant(self, index: int, rpc: Rpc) -> Participant:
        work, subscriber = self._work, self._subscribers[index]
        as_client = rpc.as_user(subscriber.token, subscriber.session_id)
        callbacks = self._functions.make(index)
        private = PrivateTensors(work.private_folder)
        models = _SharedModels(as_client, work.framework, self._caches, private)
        runner = RoundRunner(as_client, callbacks, framework=work.framework, models=models)
        # The private tensors of a client are known by its index.
        runner.participate_as(User(user_id=str(uuid.UUID(int=index))))
        return Participant(as_client, runner, training_id=work.training_id, until_finished=True)


class Functions:
    """The functions of the clients, of which one runs at a time, with generators seeded for it."""

    def __init__(self, make_client: MakeClient, seed: int) -> None:
        self._make_client = make_client
        self._seed = seed
        self._lock = threading.Lock()
        self._log_lock = threading.Lock()
        self._has_failed = False

    def make(self, index: int) -> Callbacks:
        """Returns the functions of a client.

        Raises:
            SimulationFailed: They cannot be made.
        """
        with self._lock:
            seed_generators(self._seed, index)
            made = make_callbacks(self._make_client, index)
        evaluate, swag = made.evaluate, made.swag
        return Callbacks(
            self._alone(index, made.train),
            None if evaluate is None else self._alone(index, evaluate),
            None if swag is None else self._alone(index, swag),
        )

    def _alone(
        self, index: int, function: Callable[[dict[str, Any], Round], Result]
    ) -> Callable[[dict[str, Any], Round], Result]:
        calls: Counter[int] = Counter()

        def call(model: dict[str, Any], round: Round) -> Result:
            # A SWAG round may call train several times.
            calls[round.number] += 1
            with self._lock:
                seed_generators(self._seed, index, round.number + 1, calls[round.number])
                return function(model, round)

        return call

    def log_failure(self, index: int, number: int, error: BaseException) -> None:
        """Logs that a client has failed in a round; the first time in this process with the traceback."""
        with self._log_lock:
            is_first, self._has_failed = not self._has_failed, True
        if not is_first:
            text = f"Client {index} failed in {round_text(number)}: {type(error).__name__}: {error}"
            logger.warning("%s", text)
        else:
            logger.warning("Client %d failed in %s", index, round_text(number), exc_info=error)


def seed_generators(*key: int) -> None:
    """Seeds the global generators of Python, NumPy and, if it is imported, torch.

    So what a client draws does not depend on the clients that ran before it in the same process.
    """
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


def _resolve(make_client: MakeClient | str) -> MakeClient:
    return load(make_client) if isinstance(make_client, str) else make_client


def _redirect_output(log: Path) -> None:
    """Appends what this process, and libraries in it, print and log from now on to a file."""
    with log.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
