"""Puts an async context manager around every call, of all four shapes."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import cached_property
from typing import Any, TypeAlias

import grpc

Call: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"

NOTHING: "nullcontext[None]" = nullcontext()
"""For an `around` that has all its say before the call; the same one for all, as thousands of calls last long."""


class WrappingInterceptor(grpc.aio.ServerInterceptor):
    """An interceptor that puts something around handlers: subclasses say what in `wrap`."""

    def concerns(self, method: str) -> bool:
        """Tells whether there is anything to do around calls of a method."""
        return True

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns the handler that is called instead; it keeps the shape.

        Args:
            method: Full name, like /fedround.v1.TrainingService/GetTraining.
            handler: The handler.
        """
        raise NotImplementedError

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Wraps the handler."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or not self.concerns(method):
            return handler
        inner, wrapped = self._wrapped.get(method, (None, None))
        if inner is not handler:
            # Once a method, not once a call: what it is made of takes memory for as long as a subscription lasts.
            wrapped = self.wrap(method, handler)
            self._wrapped[method] = handler, wrapped
        return wrapped

    @cached_property
    def _wrapped(self) -> "dict[str, tuple[Handler, Handler]]":
        return {}


class ContextInterceptor(WrappingInterceptor):
    """An interceptor that is what it does around a call: subclasses say it in `around`."""

    def around(self, method: str, context: Call) -> AbstractAsyncContextManager[None]:
        """Returns what is done around one call.

        Args:
            method: Full name, like /fedround.v1.TrainingService/GetTraining.
            context: The call.
        """
        raise NotImplementedError

    def check(self, method: str, response: Any) -> None:
        """Looks at the response of a call that has one, within `around`; may raise."""

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Puts `around` around the handler."""

        def behaviour(inner: Any) -> Any:
            make = self._generator if inspect.isasyncgenfunction(inner) else self._coroutine
            return make(method, inner)

        return rebuilt(handler, behaviour, handler.request_deserializer, handler.response_serializer)

    def _coroutine(self, method: str, inner: Any) -> Any:
        async def behaviour(request: Any, context: Any) -> Any:
            async with self.around(method, context):
                response = await inner(request, context)
                if response is not None:
                    self.check(method, response)
                return response

        return behaviour

    def _generator(self, method: str, inner: Any) -> Any:
        async def behaviour(request: Any, context: Any) -> AsyncIterator[Any]:
            async with self.around(method, context):
                async for response in inner(request, context):
                    yield response

        return behaviour


def rebuilt(handler: "Handler", wrap: Callable[[Any], Any], deserializer: Any, serializer: Any) -> "Handler":
    """Returns a handler of the same shape, which refuses an upload at once where a unary one would hang.

    Args:
        handler: The handler.
        wrap: Makes the new behaviour of the old one.
        deserializer: Reads requests.
        serializer: Writes responses.
    """
    if handler.response_streaming:
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(wrap(handler.stream_stream), deserializer, serializer)
        return grpc.unary_stream_rpc_method_handler(wrap(handler.unary_stream), deserializer, serializer)
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(wrap(handler.stream_unary), deserializer, serializer)
    return grpc.unary_unary_rpc_method_handler(wrap(handler.unary_unary), deserializer, serializer)
