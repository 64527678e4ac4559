"""Limits the calls that are in progress at the same time, per user and in total; gRPC's own limit counts all alike."""

from collections import Counter
from contextlib import AbstractAsyncContextManager

from fedround_server.domain.errors import TooManyStreams, TooManyUploads
from fedround_server.interceptors.auth import caller
from fedround_server.interceptors.wrapping import Call, ContextInterceptor
from fedround_server.methods import METHODS, Limit


class LimitInterceptor(ContextInterceptor):
    """Enforces one limit."""

    def __init__(
        self,
        limit: Limit,
        error: type[TooManyUploads | TooManyStreams],
        per_user: int,
        total: int | None = None,
        *,
        in_progress: Counter[str],
    ) -> None:
        """Makes the interceptor.

        Args:
            limit: The limit; it counts the calls of the methods that have it in the table.
            error: Raised when a call is over the limit.
            per_user: The number of calls of one user.
            total: The number of calls of all users; None for no limit.
            in_progress: Where the calls in progress are counted, by user.
        """
        self._limit = limit
        self._error = error
        self._per_user = per_user
        self._total = total
        self._in_progress = in_progress

    def concerns(self, method: str) -> bool:
        """Returns whether the limit counts a method's calls."""
        return METHODS[method].limit is self._limit

    def wrap_call(self, method: str, context: Call) -> AbstractAsyncContextManager[None]:
        """Counts a call while it is in progress; raises an error when that is one too many."""
        user_id, noun = caller().user_id, self._limit.value
        if self._in_progress[user_id] >= self._per_user:
            raise self._error(
                f"you have {self._per_user} {noun} in progress, the limit of one user: end one, or try again later",
                limit=f"max_{noun}_per_user",
            )
        if self._total is not None and self._in_progress.total() >= self._total:
            raise self._error(
                f"the server has {self._total} {noun} in progress, its limit: try again later",
                limit=f"max_{noun}",
            )
        return CountedCall(self._in_progress, user_id)


class CountedCall:
    """Counts one call. Thousands are in progress at the same time: a generator would take five times as much memory."""

    __slots__ = ("_counter", "_key")

    def __init__(self, counter: Counter[str], key: str) -> None:
        self._counter = counter
        self._key = key

    async def __aenter__(self) -> None:
        self._counter[self._key] += 1

    async def __aexit__(self, *_: object) -> None:
        self._counter[self._key] -= 1
        if not self._counter[self._key]:
            del self._counter[self._key]
