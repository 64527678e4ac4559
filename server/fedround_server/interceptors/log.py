"""One log line a call: method, user, status, time. Never a token, never a payload."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import structlog

from fedround_server.interceptors.around import AroundInterceptor, Call

log = structlog.get_logger("fedround.call")


class LogInterceptor(AroundInterceptor):
    """The outermost interceptor: it sees the status that the caller gets."""

    @asynccontextmanager
    async def around(self, method: str, context: Call) -> AsyncIterator[None]:
        """Logs how a call ended."""
        structlog.contextvars.clear_contextvars()
        # Asked for now: a stream may be cleaned up after gRPC has freed the call, and peer() then reads freed memory.
        peer = context.peer()
        started = time.monotonic()
        cancelled = False
        try:
            yield
        except asyncio.CancelledError:
            cancelled = True
            raise
        finally:
            code = "CANCELLED" if cancelled else grpc_code(context).name
            level = log.warning if code in ("INTERNAL", "UNKNOWN", "UNAVAILABLE") else log.info
            level("call", method=method, code=code, seconds=round(time.monotonic() - started, 4), peer=peer)


def grpc_code(context: Call) -> grpc.StatusCode:
    """Returns the status that a call ends with."""
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return next((known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.OK)
