"""Kills and pauses replicas of one database while clients use them, and checks the data afterwards."""

import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

from chaos.facts import load
from chaos.history import History
from chaos.invariants import Violation, check
from chaos.random_training import RandomTraining
from chaos.retrying_client import RetryingClient, UnexpectedError
from chaos.server_process import TIMEOUT_SECONDS, RestartableServer, ServerProcess

TRAININGS_PER_CLIENT = 2
MAX_UPTIME = 1.0
MAX_DOWNTIME = 1.0
# The fraction of the faults that are pauses, and of these, of those that are longer than a lease.
PAUSES, LONG_PAUSES = 0.3, 0.1
LONG_PAUSE = 17.0


class ReplicaCampaign:
    """Some replicas with their objects in one folder, a client for each, and what is done to them."""

    def __init__(self, folder: Path, database: str, seed: str, count: int = 2) -> None:
        self._database = database
        self._seed = seed
        self._draw = random.Random(seed)
        self._folder = folder
        self._servers = [RestartableServer(folder / f"replica{number}", database) for number in range(count)]
        self._ending = threading.Event()
        self.faults: Counter[str] = Counter()
        self.num_receipts = 0

    def run(self, faults: int) -> list[Violation]:
        """Kills or pauses replicas so many times, lets all trainings end, and checks."""
        objects = self._folder / "shared" / "objects"
        objects.mkdir(parents=True, mode=0o700)
        with ExitStack() as stack:
            for server in self._servers:
                server.data_dir.mkdir(parents=True, mode=0o700)
                (server.data_dir / "objects").symlink_to(objects)
                stack.enter_context(server)
            processes = [self._start(server) for server in self._servers]
            history = History(self._folder / "history.jsonl")
            stack.callback(history.close)
            clients = [self._client(history, number) for number in range(len(self._servers))]
            for client in clients:
                stack.callback(client.close)
            pool = stack.enter_context(ThreadPoolExecutor(TRAININGS_PER_CLIENT * len(clients)))
            stack.callback(self._ending.set)
            ends = [
                pool.submit(self._run_trainings, client, f"{number} {part}")
                for number, client in enumerate(clients)
                for part in range(TRAININGS_PER_CLIENT)
            ]
            for _ in range(faults):
                number = self._draw.randrange(len(self._servers))
                processes[number] = self._disturb(self._servers[number], processes[number])
            self._ending.set()
            for end in ends:
                end.result(TIMEOUT_SECONDS)
            for process in processes:
                process.stop()
                assert process.code == 0
            self.num_receipts = sum(1 for _ in history.of("receipt"))
            return check(load(self._database, self._servers[0].data_dir), history)

    def _start(self, server: RestartableServer) -> ServerProcess:
        process = server.start()
        assert process.wait_serving(), server.log.read_text()
        return process

    def _disturb(self, server: RestartableServer, process: ServerProcess) -> ServerProcess:
        """Kills a replica and starts it again, or pauses it."""
        time.sleep(self._draw.uniform(0, MAX_UPTIME))
        if self._draw.random() >= PAUSES:
            process.kill()
            self.faults["kill"] += 1
            time.sleep(self._draw.uniform(0, MAX_DOWNTIME))
            return self._start(server)
        is_long = self._draw.random() < LONG_PAUSES
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(LONG_PAUSE if is_long else self._draw.uniform(0, MAX_DOWNTIME))
        os.kill(process.pid, signal.SIGCONT)
        self.faults["long pause" if is_long else "pause"] += 1
        return process

    def _client(self, history: History, number: int) -> RetryingClient:
        """Returns a client that uses one of the replicas, and another one while that is away."""
        addresses = [server.address for server in (*self._servers[number:], *self._servers[:number])]
        first = self._servers[0]
        return RetryingClient(f"ipv4:{','.join(addresses)}", history, first.admin_token, lambda: None, first.data_dir)

    def _run_trainings(self, client: RetryingClient, name: str) -> None:
        """Runs one random training after the other."""
        for count in itertools.count():
            if self._ending.is_set():
                return
            # An unexpected error is in the history, where the check finds it.
            with suppress(UnexpectedError):
                RandomTraining(client, f"{self._seed} {name} {count}").run()
