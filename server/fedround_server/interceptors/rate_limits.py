"""How many calls may come in a time, of each user and in all; a caller that is not known counts by its address."""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from urllib.parse import unquote

from fedround_server.domain.errors import TooManyCalls, Unauthenticated
from fedround_server.interceptors.auth import ANYBODY, PERMISSIONS, caller
from fedround_server.interceptors.wrapping import NOTHING, Call, ContextInterceptor

SECONDS = 60
"""How many seconds' worth of calls may come at once: a round begins for all its participants at the same time."""
MAX_CALLERS = 1 << 16
"""How many callers are remembered, the latest ones."""


class Buckets:
    """Token buckets by caller. A full one takes no memory; each call takes one token, and may leave a debt."""

    def __init__(self, rate: float, now: Callable[[], float] = time.monotonic) -> None:
        """Begins with full ones.

        Args:
            rate: How many tokens come in a second; SECONDS times as many make a bucket full.
            now: Tells the time in seconds.
        """
        self.rate = rate
        self._now = now
        # When each will be full again; who called last is last.
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def wait(self, key: str) -> float:
        """Returns for how many seconds there is no token for a caller."""
        now = self._now()
        return max(0.0, self._full_at.get(key, now) + 1 / self.rate - now - SECONDS)

    def take(self, key: str) -> None:
        """Takes a token of a caller."""
        now = self._now()
        self._full_at[key] = max(now, self._full_at.get(key, now)) + 1 / self.rate
        self._full_at.move_to_end(key)
        while len(self._full_at) > MAX_CALLERS or next(iter(self._full_at.values())) <= now:
            self._full_at.popitem(last=False)


class RateInterceptor(ContextInterceptor):
    """Limits how often users call; behind the authentication."""

    def __init__(self, per_user: float, in_all: float) -> None:
        """Begins without having heard of anybody.

        Args:
            per_user: Calls of one user in a second.
            in_all: Calls of all users in a second.
        """
        self._per_user = Buckets(per_user)
        self._in_all = Buckets(in_all)

    def around(self, method: str, context: Call) -> AbstractAsyncContextManager[None]:
        """Lets a call through if there is a token for it."""
        if PERMISSIONS[method] is not ANYBODY:
            user_id = caller().user_id
            if wait := self._per_user.wait(user_id):
                raise TooManyCalls(
                    f"you call more often than {self._per_user.rate:g} times a second",
                    wait,
                    "max_calls_per_second_per_user",
                )
            if wait := self._in_all.wait(""):
                raise TooManyCalls(
                    f"the server is called more often than {self._in_all.rate:g} times a second",
                    wait,
                    "max_calls_per_second",
                )
            self._per_user.take(user_id)
            self._in_all.take("")
        return NOTHING


class UnauthenticatedRateInterceptor(ContextInterceptor):
    """Limits how often an address calls without a valid token, before the store is asked about it.

    A connection over which somebody was known goes on: others behind the same address must not lock it out.
    """

    def __init__(self, per_address: float) -> None:
        """Begins without having heard of anybody.

        Args:
            per_address: Such calls from one address in a second.
        """
        self._per_address = Buckets(per_address)
        self._known: OrderedDict[str, None] = OrderedDict()

    def around(self, method: str, context: Call) -> AbstractAsyncContextManager[None]:
        """Lets a call through unless too many from its address were refused."""
        if PERMISSIONS[method] is ANYBODY:
            return NOTHING
        peer = context.peer()
        address = _address(peer)
        if peer not in self._known and (wait := self._per_address.wait(address)):
            raise TooManyCalls(
                "too many calls without a valid token came from your address", wait, "max_calls_per_second_per_user"
            )
        return _Watched(self, peer, address)

    def note(self, peer: str, address: str, *, known: bool) -> None:
        """Notes whether a call over a connection came from somebody who is known."""
        if not known:
            self._known.pop(peer, None)
            self._per_address.take(address)
            return
        self._known[peer] = None
        self._known.move_to_end(peer)
        if len(self._known) > MAX_CALLERS:
            self._known.popitem(last=False)


class _Watched:
    """One call; thousands of subscriptions last long, and a generator would take five times as much memory."""

    __slots__ = ("_address", "_peer", "_strangers")

    def __init__(self, strangers: UnauthenticatedRateInterceptor, peer: str, address: str) -> None:
        self._strangers = strangers
        self._peer = peer
        self._address = address

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Unauthenticated):
            self._strangers.note(self._peer, self._address, known=kind is None)


def _address(peer: str) -> str:
    """Returns the address of a peer such as ipv4:127.0.0.1:1234; of IPv6 the network, which one caller has whole."""
    host = unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
