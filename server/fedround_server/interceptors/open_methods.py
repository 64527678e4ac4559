"""Limits the calls of methods that need no token: health checks, health watches and reflection."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from fedround_server.domain.errors import TooManyCalls, TooManyStreams
from fedround_server.host.connections import Connections, address_of
from fedround_server.interceptors.limits import CountedCall
from fedround_server.interceptors.rate_limits import Buckets
from fedround_server.interceptors.wrapping import (
    Call,
    ContextInterceptor,
    Handler,
    MappedMessages,
    rebuild,
    wrap_request,
)
from fedround_server.methods import METHODS

PER_ADDRESS = 100
"""Calls in progress of one address."""
TOTAL = 1000
"""Calls in progress of all addresses."""


class OpenMethodInterceptor(ContextInterceptor):
    """Limits how many calls of an address are in progress, and how often it calls; each message counts as a call."""

    def __init__(self, per_address: float, connections: Connections) -> None:
        """Makes the interceptor.

        Args:
            per_address: Calls of one address per second.
            connections: Told of rejected calls.
        """
        self._rate = Buckets(per_address)
        self._connections = connections
        self._in_progress: Counter[str] = Counter()

    def concerns(self, method: str) -> bool:
        """Returns whether a method needs no token."""
        return METHODS[method].roles is None

    def wrap_call(self, method: str, context: Call) -> AbstractAsyncContextManager[None]:
        """Counts a call while it is in progress.

        Raises:
            TooManyStreams: Too many of its address, or of all, are in progress.
            TooManyCalls: Its address calls too often.
        """
        peer = context.peer()
        address = address_of(peer)
        if self._in_progress[address] >= PER_ADDRESS or self._in_progress.total() >= TOTAL:
            self._connections.reject(peer)
            raise TooManyStreams("too many calls without a token are in progress: end some, or try again later")
        try:
            self._take(address)
        except TooManyCalls:
            self._connections.reject(peer)
            raise
        return CountedCall(self._in_progress, address)

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns a handler that counts calls, and the messages of streams."""
        if handler.request_streaming:

            async def count(requests: AsyncIterator[Any], context: Call) -> MappedMessages:
                address = address_of(context.peer())

                def take(message: Any) -> Any:
                    self._take(address)
                    return message

                return MappedMessages(requests, take)

            handler = rebuild(
                handler,
                lambda inner: wrap_request(inner, count),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return super().wrap(method, handler)

    def _take(self, address: str) -> None:
        if wait := self._rate.wait(address):
            raise TooManyCalls(
                "too many calls without a token came from your address", wait, "max_calls_per_second_per_user"
            )
        self._rate.take(address)
