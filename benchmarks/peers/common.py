"""What every system under comparison gets and tells, in whatever environment it runs.

A system is a module of this folder with a function `run(workload)` that runs one training, and appends to FOLDER/told
what happens: `version WORDS`, `server PID`, `client PID`; `round SECONDS` whenever a round starts, and once more at the
end of the last one, when it waits until FOLDER/seen is there; `first NUMBER`, the first weight of the last model; and
`failed WORDS`, if it notices that it does not do all of its work.
This file needs nothing but numpy.
"""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TOLD = "BENCHMARK_TOLD"
LAYERS = "BENCHMARK_LAYERS"
"""What tells all processes of a run where to tell what happens, and how many layers the model has."""

Layers = list[np.ndarray[Any, np.dtype[np.float32]]]


@dataclass(frozen=True)
class Workload:
    """What every system is given to do.

    Attributes:
        clients: How many take part, each in a process of its own.
        megabytes: Size of the model, in 10^6 bytes.
        rounds: How many to run, also the first, which waits for the clients to start and is not counted.
        folder: Where to keep files.
    """

    clients: int
    megabytes: float
    rounds: int
    folder: Path

    @classmethod
    def of(cls, words: list[str]) -> "Workload":
        """Reads it from words of a command line."""
        clients, megabytes, rounds, folder = words
        os.environ[TOLD] = str(Path(folder) / "told")
        return cls(int(clients), float(megabytes), int(rounds), Path(folder))

    def layers(self) -> Layers:
        """Makes the model: layers of float32 weights."""
        count = int(os.environ[LAYERS])
        size = int(self.megabytes * 1e6) // 4 // count
        generator = np.random.default_rng(0)
        return [generator.standard_normal(size, np.float32) for _ in range(count)]


def touch(layers: Layers, number: int) -> None:
    """Makes an update of a client's copy of the model: no two are alike, and it costs nothing."""
    layers[0][0] += number + 1


def tell(word: str, value: object) -> None:
    """Tells the driver something; from any process below."""
    with Path(os.environ[TOLD]).open("a") as file:
        file.write(f"{word} {value}\n")


def tell_round() -> None:
    """Tells that a round starts now."""
    tell("round", time.monotonic())


def tell_end() -> None:
    """Tells that the last round is over; holds the caller, and all that wait for it, until they have been looked at."""
    tell_round()
    seen = Path(os.environ[TOLD]).with_name("seen")
    while not seen.exists():
        time.sleep(0.01)


class Processes:
    """Processes that run functions of a module, and end with this one."""

    def __init__(self) -> None:
        self._fresh = multiprocessing.get_context("spawn")
        # A hundred clients that each import their modules take minutes to start.
        self._forked = multiprocessing.get_context("forkserver")
        self._all: list[multiprocessing.process.BaseProcess] = []

    def start(self, word: str, function: Callable[..., None], *arguments: object) -> None:
        """Starts one, and tells its process id as that of a "server" or a "client"."""
        process: multiprocessing.process.BaseProcess
        if word == "client":
            self._forked.set_forkserver_preload([function.__module__])
            process = self._forked.Process(target=function, args=arguments, daemon=True)
        else:
            process = self._fresh.Process(target=function, args=arguments, daemon=True)
        process.start()
        self._all.append(process)
        tell(word, process.pid)

    def join(self) -> None:
        """Waits for all.

        Raises:
            SystemExit: One failed.
        """
        for process in self._all:
            process.join()
            if process.exitcode:
                raise SystemExit(f"a process ended with {process.exitcode}")


def free_port() -> int:
    """Returns a port of this machine that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def wait_for_port(port: int, seconds: float = 60) -> None:
    """Waits until somebody listens at a port.

    Raises:
        OSError: Nobody does.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)):
                return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
