"""Makes a span of each call, as a part of the caller's trace."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import structlog

from fedround_server.domain.audit import acting
from fedround_server.domain.errors import FedroundError
from fedround_server.interceptors.errors import code_of
from fedround_server.interceptors.wrapping import Call, ContextInterceptor, Metadata
from fedround_server.methods import METHODS, Limit
from fedround_server.traces import Traces

TRACEPARENT = "traceparent"
"""The metadata in which W3C Trace Context has the caller's span."""


class TraceInterceptor(ContextInterceptor):
    """Comes behind authentication: only authenticated calls are recorded.

    OpenTelemetry's own interceptor takes each handler of a stream for a generator, and those of this server are
    coroutines; it makes a wrapper for each call, and records the texts of exceptions and the addresses of peers.
    """

    def __init__(self, traces: Traces) -> None:
        self._traces = traces

    def concerns(self, method: str) -> bool:
        """Returns whether calls have an end that is worth waiting for, and a caller."""
        known = METHODS[method]
        return method.startswith("/fedround.") and known.roles is not None and known.limit is not Limit.SUBSCRIPTIONS

    @asynccontextmanager
    async def wrap_call(self, method: str, context: Call) -> AsyncIterator[None]:
        """Runs a call in its span."""
        with self._traces.call(method, _traceparent(context.invocation_metadata())) as span:
            span.set("user_id", acting.get())
            structlog.contextvars.bind_contextvars(trace_id=span.trace_id)
            code = grpc.StatusCode.INTERNAL
            try:
                yield
                code = grpc.StatusCode.OK
            except FedroundError as error:
                code = code_of(error)
                raise
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            finally:
                span.set_code(code.value[0])


def _traceparent(metadata: Metadata) -> str:
    return next((str(value) for name, value in metadata or () if name == TRACEPARENT), "")
