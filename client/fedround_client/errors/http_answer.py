"""Answers that are HTTP and not gRPC: of a web server, of a proxy on the way, or of a login page."""

from __future__ import annotations

import re
from http import HTTPStatus

import grpc

from fedround_client.errors.client_side import NoGrpcServer, RequestBodyLimit
from fedround_client.errors.family import FedroundError, ServerUnavailable

# As gRPC words the status of an answer over HTTP/2, and over HTTP/1.
_STATUS = re.compile(r"http2 header with status: (\d{3})|HTTP status (\d{3})")
# An answer of HTTP/2 without gRPC's trailer, such as a page; of a gRPC server, one that was cut off by a proxy.
_WITHOUT_TRAILER = ("No status received", "Stream removed (Data frame with END_STREAM flag received)")
# A gateway whose server restarts, a peer that is too slow or too fast: worth another attempt.
_TEMPORARY = frozenset({408, 429, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


def from_http_answer(details: str, address: str) -> FedroundError | None:
    """Returns the exception for an answer with an HTTP status that no gRPC server gives; None for others.

    Args:
        details: What gRPC says about the answer.
        address: The server's address.
    """
    found = _STATUS.search(details)
    if found is not None:
        return _from_status(int(found[1] or found[2]), address)
    if "Failed parsing HTTP/2" in details:
        return _no_grpc(address, "what answers there does not speak HTTP/2")
    return None


def from_page(code: grpc.StatusCode, details: str, address: str) -> FedroundError | None:
    """Returns the exception for an answer that ends as a web page does; None for others.

    An answer of fedround looks the same if a proxy cut it off, so this is for a peer that has not answered with gRPC
    before.

    Args:
        code: The status code that gRPC made of the answer.
        details: As in `from_http_answer`.
        address: As in `from_http_answer`.
    """
    if code is grpc.StatusCode.UNKNOWN and details in _WITHOUT_TRAILER:
        return _no_grpc(address, "what answers there sends a web page, perhaps of a proxy or a login")
    return None


def _from_status(status: int, address: str) -> FedroundError:
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return RequestBodyLimit(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "REQUEST_BODY_LIMIT",
            f"A proxy on the way to {address} limits request bodies (HTTP 413): raise its limit; for nginx,"
            " client_max_body_size 0.",
            {"http_status": "413"},
        )
    try:
        name = f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        name = f"HTTP {status}"
    if status in _TEMPORARY:
        message = (
            f"A proxy on the way to {address} answers with {name}: the server behind it may be down or restarting."
        )
        return ServerUnavailable(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", message, {"http_status": str(status)})
    hint = ", a redirect to another address" if status in _REDIRECTS else ""
    return _no_grpc(address, f"the answer is {name}{hint}", http_status=str(status))


def _no_grpc(address: str, what: str, **metadata: str) -> NoGrpcServer:
    return NoGrpcServer(
        grpc.StatusCode.FAILED_PRECONDITION,
        "NO_GRPC_SERVER",
        f"No gRPC server answers at {address}: {what}. Check host and port; a proxy in between must forward HTTP/2 to"
        " the server.",
        metadata,
    )
