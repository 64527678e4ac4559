"""Writes one log line per call: method, user, status, time. Never a token, never a payload."""

import asyncio
import time
from contextlib import AbstractAsyncContextManager

import grpc
import structlog

from fedround_server.interceptors.wrapping import Call, ContextInterceptor

log = structlog.get_logger("fedround.call")


class LogInterceptor(ContextInterceptor):
    """The outermost interceptor: it logs the status that the caller gets."""

    def wrap_call(self, method: str, context: Call) -> AbstractAsyncContextManager[None]:
        """Logs a call when it ends."""
        return _LoggedCall(method, context)


class _LoggedCall:
    """Logs one call. Thousands are in progress at the same time: a generator would take five times as much memory."""

    __slots__ = ("_context", "_method", "_peer", "_started")

    def __init__(self, method: str, context: Call) -> None:
        self._method = method
        self._context = context
        # Read now: a stream may be cleaned up after gRPC has freed the call, and peer() then reads freed memory.
        self._peer = context.peer()
        self._started = time.monotonic()

    async def __aenter__(self) -> None:
        structlog.contextvars.clear_contextvars()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        cancelled = kind is not None and issubclass(kind, asyncio.CancelledError)
        code = "CANCELLED" if cancelled else status_code(self._context).name
        level = log.warning if code in ("INTERNAL", "UNKNOWN", "UNAVAILABLE") else log.info
        seconds = round(time.monotonic() - self._started, 4)
        level("call", method=self._method, code=code, seconds=seconds, peer=self._peer)


def status_code(context: Call) -> grpc.StatusCode:
    """Returns the status code of a call that has ended."""
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return next((known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.OK)
