"""Decodes requests within their call, so that one that cannot be decoded gets an error like any other."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.protobuf.message import DecodeError

from fedround_server.domain.errors import MessageInvalid
from fedround_server.interceptors.binding import bind
from fedround_server.interceptors.wrapping import Handler, MappedMessages, WrappingInterceptor, rebuild, wrap_request
from fedround_server.traces import Traces

MESSAGE_SECONDS = 30.0
"""How long the only message of a call may take if the call was accepted before it."""


class DecodingInterceptor(WrappingInterceptor):
    """Decodes requests; the innermost interceptor but for the codec.

    gRPC itself would decode them before it calls any interceptor, log a traceback and answer UNKNOWN. The first message
    says what the call is about.
    """

    def __init__(self, traces: Traces) -> None:
        self._traces = traces

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns a handler that is given the bytes of its messages."""
        name = method.rpartition("/")[2]
        deserialize: Any = handler.request_deserializer

        def decode(data: bytes) -> Any:
            try:
                return deserialize(data)
            except DecodeError:
                raise MessageInvalid(f"a message of {name} cannot be decoded: send what its proto file says") from None

        def decode_first(data: bytes) -> Any:
            message = decode(data)
            bind(message, self._traces)
            return message

        async def decode_only(request: Any, _context: Any) -> Any:
            return decode_first(request if isinstance(request, bytes) else await _only_message(name, request))

        async def decode_each(requests: AsyncIterator[bytes], _context: Any) -> Any:
            return MappedMessages(requests, decode_first, decode)

        prepare = decode_each if handler.request_streaming else decode_only
        return rebuild(handler, lambda inner: wrap_request(inner, prepare), None, handler.response_serializer)


async def _only_message(name: str, messages: Any) -> bytes:
    try:
        # gRPC's generator refers to itself until it is closed, and so keeps all of the call until there is a garbage
        # collection.
        async with asyncio.timeout(MESSAGE_SECONDS), aclosing(aiter(messages)) as generator:
            return await anext(generator)
    except (StopAsyncIteration, TimeoutError):
        raise MessageInvalid(f"{name} takes one message, and none came: send it, even an empty one") from None
