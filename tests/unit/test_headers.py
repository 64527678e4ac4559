"""Whose calls are rejected by their headers alone while the server is flooded."""

from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from fedround_server.host.connections import Connections
from fedround_server.interceptors.headers import HeadersInterceptor

TOKEN = (("x-token", "t"),)


@pytest.mark.parametrize("is_streaming", [False, True])
@pytest.mark.parametrize(
    ("is_known", "metadata", "is_rejected"),
    [
        (False, (), True),
        (False, TOKEN, False),
        (True, TOKEN, False),
        # By its certificate.
        (True, (), False),
    ],
)
async def test_a_flooded_server_rejects_calls_of_unknown_callers_without_a_token(
    is_streaming: bool, is_known: bool, metadata: Any, is_rejected: bool
) -> None:
    connections = Connections(1, 1, 1, lambda: 0, 1)
    interceptor = HeadersInterceptor(lambda _: is_known, connections)
    of = grpc.stream_unary_rpc_method_handler if is_streaming else grpc.unary_unary_rpc_method_handler
    handler: Any = of(lambda *_: None)

    async def found(_: Any) -> Any:
        return handler

    async def is_taken() -> bool:
        details: Any = SimpleNamespace(method="/fedround.v1.UserService/GetMyself", invocation_metadata=metadata)
        return await interceptor.intercept_service(found, details) is not interceptor._reject

    assert await is_taken()
    connections.is_flooded = True
    assert await is_taken() is not is_rejected
