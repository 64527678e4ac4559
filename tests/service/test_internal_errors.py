"""Internal errors of the server: the caller gets an id, and the log has the rest under it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from calls import TIMEOUT, Person, fails_with, new_id, read_error
from fedround_server.counters import Counters
from fedround_server.interceptors.errors import ErrorInterceptor
from fedround_server.interceptors.log import LogInterceptor
from servers import Server

MAX_MESSAGE = 2 << 20
SECRET = "the password is in /etc/fedround"


async def fail(request: Any, context: Any) -> bytes:
    raise ZeroDivisionError(SECRET)


async def fail_late(request: Any, context: Any) -> None:
    await context.write(b"first")
    raise ZeroDivisionError(SECRET)


async def fail_between(request: Any, context: Any) -> AsyncIterator[bytes]:
    yield b"first"
    raise ZeroDivisionError(SECRET)


# A server with a mistake in one of its reads.
PROGRAM = f"""
import sys
from fedround_server.__main__ import main
from fedround_server.store.verbs.training import TrainingVerbs

async def get(*_):
    raise ZeroDivisionError({SECRET!r})

TrainingVerbs.get = get
sys.exit(main())
"""
HANDLERS = {
    "unary_unary": grpc.unary_unary_rpc_method_handler(fail),
    "stream_unary": grpc.stream_unary_rpc_method_handler(fail),
    "unary_stream": grpc.unary_stream_rpc_method_handler(fail_late),
    "stream_stream": grpc.stream_stream_rpc_method_handler(fail_between),
}


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """Of a server whose every method fails."""
    interceptors = (
        LogInterceptor(Counters()),
        ErrorInterceptor(MAX_MESSAGE, lambda *_: pytest.fail("not a fedround error")),
    )
    server = grpc.aio.server(interceptors=interceptors)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Failing", HANDLERS),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


def call(address: str, shape: str) -> grpc.RpcError:
    with grpc.insecure_channel(address) as channel:
        request = iter([b""]) if shape.startswith("stream") else b""
        with pytest.raises(grpc.RpcError) as error:
            list(getattr(channel, shape)(f"/Failing/{shape}")(request, timeout=TIMEOUT))
    return error.value


@pytest.mark.parametrize("shape", HANDLERS)
async def test_an_internal_error_is_reported_by_its_id_alone(address: str, shape: str) -> None:
    with capture_logs() as log:
        error = await asyncio.to_thread(call, address, shape)
    found = read_error(error)
    assert (found.code, found.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    error_id = found.metadata["error_id"]
    assert error_id in found.message
    reported = f"{error.details()} {error.trailing_metadata()} {error.debug_error_string()}"
    assert SECRET not in reported
    assert "ZeroDivisionError" not in reported

    (mistake,) = (entry for entry in log if entry["event"] == "unexpected error")
    assert (mistake["log_level"], mistake["error_id"], mistake["method"]) == ("error", error_id, f"/Failing/{shape}")
    # Whoever writes the log adds the exception that is being handled.
    assert mistake["exc_info"] is True


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_the_log_of_a_server_has_the_rest(tmp_path: Path, log_format: str) -> None:
    program, options = ("-c", PROGRAM), ("--log-format", log_format)
    with (
        Server(tmp_path / "data", program=program, options=options) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        with fails_with("INTERNAL", "INTERNAL", "under which its log has the details") as error:
            Person(channel, server.admin_token).get(new_id())
        assert SECRET not in error.details.message
        server.stop()
        _, _, rest = server.log.partition(error.details.metadata["error_id"])
        assert "ZeroDivisionError" in rest
        assert SECRET in rest
