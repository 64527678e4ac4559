"""Subscribers that measure how long they are told nothing after their replica was killed or paused."""

import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

import fedround_client as fr
from fedround_client.subscription import Subscription

SETTLE_SECONDS = 60.0


@dataclass
class Loss:
    """What a subscriber waits out.

    Attributes:
        what: What was done to the replica.
        at: When, as `time.monotonic()` says it.
        stream: The subscription at that replica.
        since: When another reason for a silence was there last; at first `at`.
        stretch: The longest time without another reason so far.
        is_paused: Whether a replica was paused, this one or the one that the subscriber may have tried next.
    """

    what: str
    at: float
    stream: Any
    since: float
    stretch: float = 0.0
    is_paused: bool = False

    def end_stretch(self) -> None:
        now = time.monotonic()
        self.stretch = max(self.stretch, now - self.since)
        self.since = now


class Followers:
    """Some subscribers of one training, each with the addresses of all replicas, within a `with` block.

    Attributes:
        silences: How long subscribers were told nothing, in seconds, by what was done to their replica.
        stretches: Of each of these times, the longest part without another reason for it, without a pause and with one.
    """

    def __init__(self, addresses: str, token: str, count: int) -> None:
        """Creates the training, in which nothing happens: subscribers get heartbeats."""
        with fr.connect(addresses, token) as client:
            made = client.create_training({"w": np.zeros(1, np.float32)}, name="followed", target_num_updates=1)
        self.silences: dict[str, list[float]] = defaultdict(list)
        self.stretches: dict[str, list[float]] = defaultdict(list)
        self._clients = [fr.connect(addresses, token) for _ in range(count)]
        self._followers = [
            _Follower(client, made.training_id, self.silences, self.stretches) for client in self._clients
        ]

    def __enter__(self) -> Self:
        for follower in self._followers:
            follower.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.close()
        for follower in self._followers:
            follower.join()

    def lose(self, address: str, what: str, at: float) -> None:
        """Has the subscribers of a replica measure from now on until another one tells them something."""
        for follower in self._followers:
            follower.lose(address, what, at)

    def excuse(self, why: str) -> None:
        """Counts the silences of this moment apart: there is another reason for them, too."""
        for follower in self._followers:
            follower.excuse(why)

    def settle(self) -> None:
        """Waits until all are told something again; one that is not has failed."""
        end = time.monotonic() + SETTLE_SECONDS
        for follower in self._followers:
            while follower.is_waiting and time.monotonic() < end:
                time.sleep(0.01)
            if follower.is_waiting:
                follower.failures.append(f"a subscriber is told nothing {SETTLE_SECONDS:.0f} s after the last kill")

    @property
    def failures(self) -> list[str]:
        """The errors that subscribers were given, none of which they should have been."""
        return [failure for follower in self._followers for failure in follower.failures]


class _Follower(threading.Thread):
    def __init__(
        self,
        client: fr.Client,
        training_id: str,
        silences: dict[str, list[float]],
        stretches: dict[str, list[float]],
    ) -> None:
        super().__init__(name="follower", daemon=True)
        self.failures: list[str] = []
        self._silences = silences
        self._stretches = stretches
        self._lock = threading.Lock()
        # The subscription that has told something last, and the one that was begun last.
        self._told: Any = None
        self._begun: Any = None
        self._loss: Loss | None = None
        rpc: Any = client._rpc
        begin = rpc.open

        def open_stream(method: Any, request: Any) -> Any:
            self._begun = begin(method, request)
            return self._begun

        # A subscription does not say which replica it is at.
        rpc.open = open_stream
        self._events = Subscription(rpc, training_id, heartbeats=True)

    def run(self) -> None:
        try:
            for _ in self._events:
                self._receive(time.monotonic())
        except fr.ClientClosed:
            return
        except Exception as error:
            self.failures.append(repr(error))

    def lose(self, address: str, what: str, at: float) -> None:
        with self._lock:
            if self._loss is None and self._told is not None and self._told.replica.address == address:
                self._loss = Loss(what, at, self._told, at)
            if self._loss is not None:
                self._loss.is_paused |= "pause" in what

    @property
    def is_waiting(self) -> bool:
        return self._loss is not None

    def excuse(self, why: str) -> None:
        with self._lock:
            if self._loss is None:
                return
            self._loss.end_stretch()
            if "," not in self._loss.what:
                self._loss.what += f", {why}"

    def _receive(self, now: float) -> None:
        with self._lock:
            self._told = self._begun
            if self._loss is None:
                return
            if self._told is not self._loss.stream:
                self._loss.end_stretch()
                self._stretches["with a pause" if self._loss.is_paused else "kill"].append(self._loss.stretch)
                self._silences[self._loss.what].append(now - self._loss.at)
                self._loss = None
            elif "pause" in self._loss.what:
                # It has gone on before its subscribers left it.
                self._loss = None
