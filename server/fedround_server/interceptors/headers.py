"""Runs the calls of unknown callers as soon as their headers are there."""

from collections.abc import Callable
from typing import Any

import grpc
from grpc_status import rpc_status

from fedround_server.domain.errors import ServerOverloaded
from fedround_server.host.connections import Connections
from fedround_server.interceptors.auth import has_token
from fedround_server.interceptors.errors import to_status
from fedround_server.interceptors.wrapping import Call, Continuation, Handler, Metadata, WrappingInterceptor
from fedround_server.methods import METHODS

OVERLOADED = "the server is flooded with calls without a token: send one, or try again later"


class HeadersInterceptor(WrappingInterceptor):
    """Has callers authenticated before their message arrives, unless they have called before; the outermost one.

    gRPC calls the handler of a unary request only when the request is there, so that calls without one would wait for
    ever, at 20 kB each. A handler of a stream is called at once. It costs a known caller some 150 us more.
    """

    def __init__(self, is_known: Callable[[Metadata], bool], connections: Connections) -> None:
        """Makes the interceptor.

        Args:
            is_known: Returns whether metadata have a token that was valid a short time ago; always true if callers
                without a token have a certificate.
            connections: Says whether the server is flooded: calls that lack a token are rejected at once then.
        """
        self._is_known = is_known
        self._connections = connections
        self._reject: Handler = grpc.stream_stream_rpc_method_handler(_reject(connections))

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Returns the handler of a call, as one of a stream if the caller is unknown."""
        self._connections.take_call()
        handler = await continuation(handler_call_details)
        method, metadata = str(handler_call_details.method), handler_call_details.invocation_metadata
        needs_token = method not in METHODS or METHODS[method].roles is not None
        if self._connections.is_flooded and needs_token and not has_token(metadata) and not self._is_known(metadata):
            return self._reject
        if handler is None or handler.request_streaming or self._is_known(metadata):
            return handler
        return self.wrapped(method, handler)

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns a handler of a stream; `DecodingInterceptor` reads its only message."""
        if handler.response_streaming:
            behaviour: Any = handler.unary_stream
        else:
            behaviour = _respond(handler.unary_unary)
        return grpc.stream_stream_rpc_method_handler(
            behaviour, handler.request_deserializer, handler.response_serializer
        )


def _reject(connections: Connections) -> Any:
    status = rpc_status.to_status(to_status(ServerOverloaded(OVERLOADED)))

    async def behaviour(_: Any, context: Call) -> None:
        connections.reject(context.peer())
        await context.abort(status.code, status.details, status.trailing_metadata)

    return behaviour


def _respond(inner: Any) -> Any:
    async def behaviour(requests: Any, context: Any) -> None:
        response = await inner(requests, context)
        if response is not None:
            await context.write(response)

    return behaviour
