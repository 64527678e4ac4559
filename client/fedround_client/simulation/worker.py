"""A worker of a simulation: runs the rounds of its clients, one after the other."""

from __future__ import annotations

import logging
import os
import random
import sys
import uuid
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedround.v1.event_pb2 import COMPRESSION_UNSPECIFIED, Event
from fedround_client.cache import ModelCache
from fedround_client.channel import Target
from fedround_client.clock import SystemClock
from fedround_client.logs import get_logger
from fedround_client.participant import MAX_FREED_BLOCK, TRIM_THRESHOLD, Participant
from fedround_client.round_number import round_text
from fedround_client.round_runner import RoundRunner
from fedround_client.rpc import Rpc
from fedround_client.simulation.functions import MakeClient, load, make_callbacks
from fedround_client.simulation.streams import Subscriptions
from fedround_client.subscription import FINAL_EVENTS
from fedround_client.tensor_types import Framework
from fedround_wire.allocator import keep_freed

logger = get_logger(__name__)


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
    """

    make_client: MakeClient | str
    address: str
    training_id: str
    tokens: dict[int, str]
    seed: int
    framework: Framework | None
    log: Path | None


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
    _Clients(work).run()


class _Clients:
    """The clients of a worker."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._make_client = _resolve(work.make_client)
        self._participants: dict[int, Participant] = {}
        self._sessions = {index: str(uuid.uuid4()) for index in work.tokens}
        # Shared by all clients of this process: the first one downloads a version of the model.
        self._cache = ModelCache()
        self._has_failed = False

    def run(self) -> None:
        """Runs rounds until the training has ended for all clients."""
        work, running = self._work, set(self._work.tokens)
        target = Target(work.address)
        with (
            closing(self._cache),
            target.open_channel() as channel,
            Subscriptions(work.address, work.training_id, work.tokens, self._sessions) as subscriptions,
        ):
            rpc = Rpc(
                channel,
                token=None,
                address=work.address,
                clock=SystemClock(),
                compression=COMPRESSION_UNSPECIFIED,
                target=target,
            )
            while running:
                index, event = subscriptions.next()
                if event.WhichOneof("payload") in FINAL_EVENTS:
                    running.discard(index)
                elif event.HasField("round_started"):
                    if index not in self._participants:
                        self._participants[index] = self._new_participant(index, rpc)
                    self._run_round(index, event, is_live=subscriptions.is_latest(index))

    def _new_participant(self, index: int, rpc: Rpc) -> Participant:
        work = self._work
        seed_generators(work.seed, index)
        callbacks = make_callbacks(self._make_client, index)
        as_client = rpc.as_user(work.tokens[index], self._sessions[index])
        runner = RoundRunner(as_client, callbacks, framework=work.framework, cache=self._cache)
        return Participant(as_client, runner, training_id=work.training_id, until_finished=True)

    def _run_round(self, index: int, event: Event, *, is_live: bool) -> None:
        number = event.round_started.round
        seed_generators(self._work.seed, index, number + 1)
        try:
            self._participants[index].handle(event, is_live=is_live)
        except Exception as error:  # the participant has reported it to the server
            name = f"Client {index} failed in {round_text(number)}"
            if self._has_failed:
                logger.warning("%s: %s: %s", name, type(error).__name__, error)
            else:
                logger.warning("%s", name, exc_info=True)
            self._has_failed = True


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
