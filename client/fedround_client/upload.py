"""Uploads of model files in chunks, which resume after a lost connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import google_crc32c
import grpc

from fedround.v1.round_pb2 import GetUploadRequest
from fedround_client.compression import compress
from fedround_client.errors import FedroundError
from fedround_client.payload import Payload, Progress
from fedround_client.retry import ATTEMPTS
from fedround_client.rpc import Rpc
from fedround_wire.chunk_codec import ChunkMessage

Request = TypeVar("Request")
Response = TypeVar("Response")


def upload(
    rpc: Rpc,
    method: grpc.StreamUnaryMultiCallable[Request, Response],
    payload: Payload,
    upload_id: str,
    first: Callable[[int], Request],
    more: Callable[..., Request],
    *,
    attempts: int | None = ATTEMPTS,
    progress: Progress | None = None,
) -> Response:
    """Sends a file. After a lost connection or a damaged chunk it continues at the offset that the server has reached.

    Args:
        rpc: Calls the server.
        method: The client-streaming method, of a stub with the chunk codec.
        payload: The file.
        upload_id: UUID by which the server knows the upload; empty if there is no file to resume.
        first: Returns the first message of a stream that starts at an offset in bytes.
        more: Returns a message with chunk, chunk_crc32c and compression.
        attempts: How many attempts in a row may fail without progress; None for any number.
        progress: Called after every chunk.

    Returns:
        The server's response.

    Raises:
        FedroundError: The server answered with an error that is not transient, or the last attempt failed.
        Exception: Reading the file, or `progress`, raised it.
    """
    failures: list[Exception] = []

    def messages(head: Request, offset: int) -> Iterator[Any]:
        try:
            yield head
            for chunk, end in payload.chunks(offset):
                data, compression = compress(chunk, rpc.compression)
                crc = google_crc32c.value(chunk)
                if compression:
                    yield more(chunk=data, chunk_crc32c=crc, compression=compression)
                else:
                    yield ChunkMessage(data, crc)
                if progress is not None:
                    progress(end, payload.size_bytes)
        except Exception as error:
            # gRPC reports an exception of its request iterator as a lost connection.
            failures.append(error)
            raise

    committed, is_resumed = 0, False
    for attempt in rpc.retrying(attempts):
        with attempt:
            if is_resumed and upload_id:
                offset = rpc.unary(rpc.rounds.GetUpload, GetUploadRequest(upload_id=upload_id)).committed_size
                if offset > committed:
                    attempt.retry_state.attempt_number = 1
                committed = offset
            is_resumed = True
            try:
                return rpc.send(method, messages(first(committed), committed))
            except FedroundError:
                if failures:
                    raise failures[0] from None
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")
