"""Base classes of interceptors that wrap handlers of all four kinds of RPC, or run calls in a context manager."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import cached_property
from typing import Any, TypeAlias

import grpc

Call: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Metadata: TypeAlias = "Iterable[tuple[str, str | bytes]] | None"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"

NO_CONTEXT: "nullcontext[None]" = nullcontext()
"""For a `wrap_call` that only acts before the call. One object for all: thousands of calls are in progress."""


class WrappingInterceptor(grpc.aio.ServerInterceptor):
    """An interceptor that wraps handlers; subclasses implement `wrap`."""

    def concerns(self, method: str) -> bool:
        """Returns whether the interceptor wraps a method's handler."""
        return True

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns the handler to call instead, of the same kind; methods have names like /package.Service/Method."""
        raise NotImplementedError

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Returns the wrapped handler of a call."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        return handler if handler is None or not self.concerns(method) else self.wrapped(method, handler)

    def wrapped(self, method: str, handler: Handler) -> Handler:
        """Returns what `wrap` does, which is called once for each method."""
        inner, wrapped = self._wrapped.get(method, (None, handler))
        if inner is not handler:
            # Once per method, not once per call: a wrapper takes memory for as long as a subscription lasts.
            wrapped = self.wrap(method, handler)
            self._wrapped[method] = handler, wrapped
        return wrapped

    @cached_property
    def _wrapped(self) -> "dict[str, tuple[Handler, Handler]]":
        return {}


class ContextInterceptor(WrappingInterceptor):
    """An interceptor that runs each call in an async context manager; subclasses implement `wrap_call`."""

    def wrap_call(self, method: str, context: Call) -> AbstractAsyncContextManager[None]:
        """Returns the context manager that a call runs in."""
        raise NotImplementedError

    def check_response(self, method: str, response: Any) -> None:
        """Checks the only response of a call, within its context manager; may raise."""

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns a handler that runs each call in the context manager."""

        def wrap_behaviour(inner: Any) -> Any:
            wrap = self._wrap_generator if inspect.isasyncgenfunction(inner) else self._wrap_coroutine
            return wrap(method, inner)

        return rebuild(handler, wrap_behaviour, handler.request_deserializer, handler.response_serializer)

    def _wrap_coroutine(self, method: str, inner: Any) -> Any:
        async def behaviour(request: Any, context: Any) -> Any:
            async with self.wrap_call(method, context):
                response = await inner(request, context)
                if response is not None:
                    self.check_response(method, response)
                return response

        return behaviour

    def _wrap_generator(self, method: str, inner: Any) -> Any:
        async def behaviour(request: Any, context: Any) -> AsyncIterator[Any]:
            async with self.wrap_call(method, context):
                async for response in inner(request, context):
                    yield response

        return behaviour


class CombinedInterceptor(WrappingInterceptor):
    """Several interceptors as one, the outermost first: gRPC awaits a coroutine for each that it is given, per call."""

    def __init__(self, interceptors: Iterable[WrappingInterceptor]) -> None:
        self._interceptors = tuple(interceptors)

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns a handler that is wrapped by all that are concerned."""
        for interceptor in reversed(self._interceptors):
            if interceptor.concerns(method):
                handler = interceptor.wrap(method, handler)
        return handler


class MappedMessages:
    """The messages of a stream, each replaced by what a function returns for it; another one for the first message."""

    def __init__(
        self, messages: AsyncIterator[Any], first: Callable[[Any], Any], function: Callable[[Any], Any] | None = None
    ) -> None:
        self._messages = messages
        self._next = first
        self._function = function or first

    def __aiter__(self) -> "MappedMessages":
        return self

    async def __anext__(self) -> Any:
        function, self._next = self._next, self._function
        return function(await anext(self._messages))


def wrap_request(inner: Any, prepare: Callable[[Any, Any], Awaitable[Any]]) -> Any:
    """Returns a behaviour of the same kind that is given what `prepare` makes of the request and the context."""

    async def coroutine(request: Any, context: Any) -> Any:
        return await inner(await prepare(request, context), context)

    async def generator(request: Any, context: Any) -> AsyncIterator[Any]:
        async for response in inner(await prepare(request, context), context):
            yield response

    return generator if inspect.isasyncgenfunction(inner) else coroutine


def rebuild(handler: "Handler", wrap: Callable[[Any], Any], deserializer: Any, serializer: Any) -> "Handler":
    """Returns a handler of the same kind whose behaviour is wrapped: one of another kind would block on an upload."""
    if handler.response_streaming:
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(wrap(handler.stream_stream), deserializer, serializer)
        return grpc.unary_stream_rpc_method_handler(wrap(handler.unary_stream), deserializer, serializer)
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(wrap(handler.stream_unary), deserializer, serializer)
    return grpc.unary_unary_rpc_method_handler(wrap(handler.unary_unary), deserializer, serializer)
