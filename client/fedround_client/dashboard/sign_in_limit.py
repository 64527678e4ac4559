"""A limit on failed sign-ins from one address."""

from __future__ import annotations

import ipaddress
import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable

MAX_FAILURES = 10
"""How many failed sign-ins an address has in WINDOW_SECONDS."""
WINDOW_SECONDS = 60.0
MAX_ADDRESSES = 10_000
"""How many addresses are remembered."""


class SignInLimit:
    """Counts failed sign-ins by address. Thread-safe.

    A token has 256 random bits, which cannot be guessed: the limit protects the server from the calls.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Creates the limit.

        Args:
            clock: Returns the time in seconds; never goes back.
        """
        self._clock = clock
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, address: str) -> int:
        """Returns how many seconds an address has to wait before the next attempt; 0 for none."""
        with self._lock:
            times = self._failures.get(_network(address))
            if times is None or len(times) < MAX_FAILURES:
                return 0
            return max(0, math.ceil(times[0] + WINDOW_SECONDS - self._clock()))

    def add(self, address: str) -> None:
        """Counts an attempt. It is counted before its outcome is known, so that no more run at the same time."""
        network = _network(address)
        with self._lock:
            self._failures.setdefault(network, deque(maxlen=MAX_FAILURES)).append(self._clock())
            self._failures.move_to_end(network)
            if len(self._failures) > MAX_ADDRESSES:
                self._failures.popitem(last=False)

    def clear(self, address: str) -> None:
        """Forgets the failures of an address, after a sign-in."""
        with self._lock:
            self._failures.pop(_network(address), None)


def _network(address: str) -> str:
    """Returns the address, or the network of an IPv6 address, which one machine has to itself (/64)."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else address
