"""Writes one log line per call: method, user, status, time. Never a token, never a payload."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

import grpc
import structlog

from fedround_server.counters import Counters
from fedround_server.interceptors.wrapping import Call, ContextInterceptor

log = structlog.get_logger("fedround.call")
FREQUENT = frozenset({"/fedround.v1.RoundService/CheckIn"})
"""Methods that devices call again and again, at any time: without an error they are logged as DEBUG."""
CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class LogInterceptor(ContextInterceptor):
    """The outermost interceptor: it logs and counts the status that the caller gets."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def wrap_call(self, method: str, context: Call) -> AbstractAsyncContextManager[None]:
        """Logs a call when it ends."""
        return _LoggedCall(method, context, self._counters)


class _LoggedCall:
    """Logs one call. Thousands are in progress at the same time: a generator would take five times as much memory."""

    __slots__ = ("_context", "_counters", "_method", "_peer", "_started")

    def __init__(self, method: str, context: Call, counters: Counters) -> None:
        self._method = method
        self._counters = counters
        self._context = context
        # Read now: a stream may be cleaned up after gRPC has freed the call, and peer() then reads freed memory.
        self._peer = context.peer()
        self._started = time.monotonic()

    async def __aenter__(self) -> None:
        structlog.contextvars.clear_contextvars()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        cancelled = kind is not None and issubclass(kind, asyncio.CancelledError)
        code = "CANCELLED" if cancelled else status_code(self._context).name
        level = log.info
        if code in ("INTERNAL", "UNKNOWN", "UNAVAILABLE"):
            level = log.warning
        elif code == "OK" and self._method in FREQUENT:
            level = log.debug
        seconds = time.monotonic() - self._started
        self._counters.add_call(self._method, code, seconds)
        level("call", method=self._method, code=code, seconds=round(seconds, 4), peer=self._peer)


def status_code(context: Call) -> grpc.StatusCode:
    """Returns the status code of a call that has ended."""
    code = context.code()
    return code if isinstance(code, grpc.StatusCode) else CODES.get(code, grpc.StatusCode.OK)
