"""The replicas of a server: which one the next call goes to, and which are not used until they serve again."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

import grpc

from fedround_client.channel import Target
from fedround_client.errors import FedroundError, ResourceExhausted
from fedround_client.health import ask_health
from fedround_client.logs import get_logger

logger = get_logger(__name__)

CHECK_SECONDS = 5.0
"""How long a replica may take to answer a health check."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds between health checks of a replica that is not used: they double up to the second number."""

# What a call gets from a replica that is gone, is shutting down, or does not go on.
_SUSPICIOUS = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


class Replica:
    """One replica.

    Attributes:
        target: How to connect to it.
        channel: The channel to it, which connects with the first call.
        is_used: Whether calls go to it before those that are not used.
    """

    def __init__(self, target: Target) -> None:
        """Opens the channel.

        Raises:
            OSError: A file of TLS cannot be read.
        """
        self.target = target
        self.channel = target.open_channel(is_replica=True)
        self.is_used = True

    @property
    def address(self) -> str:
        """Its address, as the user wrote it."""
        return self.target.server


class Replicas:
    """All replicas of a server. Calls go to one after the other. Thread-safe."""

    def __init__(self, targets: Sequence[Target]) -> None:
        """Opens the channels.

        Raises:
            OSError: A file of TLS cannot be read.
        """
        self.all = tuple(map(Replica, targets))
        self._lock = threading.Lock()
        # Not the first: many clients with the same list must not all begin there.
        self._next = random.randrange(len(self.all))  # noqa: S311 -- not a secret
        self._closed = threading.Event()

    def in_turn(self) -> list[Replica]:
        """Returns all replicas in the order in which a call tries them, which is another one for the next call."""
        with self._lock:
            first, self._next = self._next, (self._next + 1) % len(self.all)
        # Stable: those that are not used come last.
        return sorted(self.all[first:] + self.all[:first], key=lambda replica: not replica.is_used)

    def report(self, replica: Replica, code: grpc.StatusCode | None) -> None:
        """Reports how a call to a replica has ended: after some codes it is not used until it serves again."""
        if code in _SUSPICIOUS:
            self.suspect(replica)

    def suspect(self, replica: Replica) -> None:
        """Has other replicas be used instead of one until a health check finds that it serves."""
        with self._lock:
            if not replica.is_used or self._closed.is_set():
                return
            replica.is_used = False
        name = f"fedround-health-{replica.address}"
        threading.Thread(target=self._check, args=(replica,), name=name, daemon=True).start()

    def close(self) -> None:
        """Closes the channels; calls in progress fail."""
        self._closed.set()
        for replica in self.all:
            replica.channel.close()

    def _check(self, replica: Replica) -> None:
        """Waits until a replica serves."""
        pause, known = FIRST_PAUSE, ""
        while not self._closed.wait(pause * random.uniform(0.5, 1.0)):  # noqa: S311 -- not a secret
            found = _find_fault(replica)
            if self._closed.is_set():
                return
            if not found:
                break
            if found != known:
                logger.warning("Not used until it serves again: %s", found)
                known = found
            pause = min(2 * pause, LONGEST_PAUSE)
        replica.is_used = True
        if known:
            logger.info("The server at %s serves again", replica.address)


def _find_fault(replica: Replica) -> str:
    """Returns why a replica does not serve; empty if it does."""
    try:
        status = ask_health(replica.channel, replica.target, "", CHECK_SECONDS)
    except ResourceExhausted:  # it is there, and has too many of these calls
        return ""
    except FedroundError as error:
        return str(error)
    except ValueError:  # the channel was closed meanwhile
        return ""
    return f"The server at {replica.address} is shutting down" if status == "NOT_SERVING" else ""
