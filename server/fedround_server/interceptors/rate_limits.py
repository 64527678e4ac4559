"""Limits the rate of calls, per user and in total; calls without valid credentials count by their address."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fedround_server.domain.errors import TooManyCalls, Unauthenticated
from fedround_server.host.connections import Connections, address_of
from fedround_server.interceptors.auth import caller
from fedround_server.interceptors.wrapping import NO_CONTEXT, Call, ContextInterceptor
from fedround_server.methods import METHODS

BURST_SECONDS = 60
"""The size of a full bucket, in seconds of its rate: a round begins for all its participants at the same moment."""
MAX_KEYS = 1 << 16
"""How many users or addresses are remembered: those that called last."""


class Buckets:
    """Token buckets by key. A full one takes no memory; each call takes one token, and may leave a debt."""

    def __init__(self, rate: float, now: Callable[[], float] = time.monotonic) -> None:
        """Makes full buckets.

        Args:
            rate: Tokens that are added per second; a full bucket has BURST_SECONDS times as many.
            now: Returns the time in seconds.
        """
        self.rate = rate
        self._now = now
        # When each bucket will be full again, in the order of the last calls.
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def wait(self, key: str) -> float:
        """Returns in how many seconds a bucket will have a token; 0 if it has one."""
        now = self._now()
        return max(0.0, self._full_at.get(key, now) + 1 / self.rate - now - BURST_SECONDS)

    def take(self, key: str) -> None:
        """Takes a token from a bucket."""
        now = self._now()
        self._full_at[key] = max(now, self._full_at.get(key, now)) + 1 / self.rate
        self._full_at.move_to_end(key)
        while len(self._full_at) > MAX_KEYS or next(iter(self._full_at.values())) <= now:
            self._full_at.popitem(last=False)


class RateInterceptor(ContextInterceptor):
    """Limits the rate of authenticated calls; inside of the authentication."""

    def __init__(self, per_user: float, total: float) -> None:
        """Makes the interceptor for so many calls per second, of one user and of all users."""
        self._per_user = Buckets(per_user)
        self._total = Buckets(total)

    def wrap_call(self, method: str, context: Call) -> AbstractAsyncContextManager[None]:
        """Takes a token for a call.

        Raises:
            TooManyCalls: There is none.
        """
        if METHODS[method].roles is not None:
            user_id = caller().user_id
            if wait := self._per_user.wait(user_id):
                raise TooManyCalls(
                    f"you call more often than {self._per_user.rate:g} times per second",
                    wait,
                    "max_calls_per_second_per_user",
                )
            if wait := self._total.wait(""):
                raise TooManyCalls(
                    f"the server is called more often than {self._total.rate:g} times per second",
                    wait,
                    "max_calls_per_second",
                )
            self._per_user.take(user_id)
            self._total.take("")
        return NO_CONTEXT


class UnauthenticatedRateInterceptor(ContextInterceptor):
    """Limits the rate of calls without valid credentials, by address, before the store is asked about them.

    A connection whose last call was authenticated is exempt: others behind the same address must not lock it out.
    """

    def __init__(self, per_address: float, connections: Connections) -> None:
        """Makes the interceptor for so many such calls per second from one address."""
        self._per_address = Buckets(per_address)
        self._connections = connections

    def wrap_call(self, method: str, context: Call) -> AbstractAsyncContextManager[None]:
        """Records whether a call is authenticated.

        Raises:
            TooManyCalls: Too many calls from its address were not.
        """
        if METHODS[method].roles is None:
            return NO_CONTEXT
        peer = context.peer()
        if not self._connections.is_authenticated(peer) and (wait := self._per_address.wait(address_of(peer))):
            self._connections.reject(peer)
            raise TooManyCalls(
                "too many calls without a valid token came from your address", wait, "max_calls_per_second_per_user"
            )
        return _RecordedCall(self, peer)

    def record(self, peer: str) -> None:
        """Records a call that was not authenticated."""
        self._per_address.take(address_of(peer))
        self._connections.forget(peer)
        self._connections.reject(peer)

    def record_cancelled(self, peer: str) -> None:
        """Records a call that its caller cancelled, perhaps before it was authenticated."""
        self._connections.reject(peer)


class _RecordedCall:
    """Records one call. Thousands are in progress at the same time: a generator would take five times the memory."""

    __slots__ = ("_interceptor", "_peer")

    def __init__(self, interceptor: UnauthenticatedRateInterceptor, peer: str) -> None:
        self._interceptor = interceptor
        self._peer = peer

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Unauthenticated):
            self._interceptor.record(self._peer)
        elif kind is not None and issubclass(kind, asyncio.CancelledError):
            self._interceptor.record_cancelled(self._peer)
