"""Uploads of model files in chunks, which resume after a lost connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, cast

import google_crc32c
import grpc
import numpy as np

from fedround.v1.round_pb2 import GetUploadRequest
from fedround_client.compression import MAX_CHUNK, compress
from fedround_client.errors import FedroundError, RequestBodyLimit, UploadIncomplete
from fedround_client.payload import CHUNK, Payload, Progress
from fedround_client.retry import ATTEMPTS, logger
from fedround_client.rpc import Rpc
from fedround_client.silence import SILENCE_TIMEOUT, Silence
from fedround_wire.chunk_codec import ChunkMessage

Request = TypeVar("Request")
Response = TypeVar("Response")

CHECKED_PER_SECOND = 10e6
"""Bytes per second that a server stores and checks at least: it answers an upload only after that."""


def upload(
    rpc: Rpc,
    method: grpc.StreamUnaryMultiCallable[Request, Response],
    payload: Payload,
    upload_id: str,
    first: Callable[[int], Request],
    more: Callable[..., Request],
    *,
    whole: grpc.UnaryUnaryMultiCallable[Request, Response] | None = None,
    attempts: int | None = ATTEMPTS,
    progress: Progress | None = None,
) -> Response:
    """Sends a file. After a lost connection or a damaged chunk it continues at the offset that the server has reached.

    If a proxy limits the size of requests (HTTP 413), the file is sent in several streams below its limit.

    Args:
        rpc: Calls the server.
        method: The client-streaming method, of a stub with the chunk codec.
        payload: The file.
        upload_id: UUID by which the server knows the upload; empty if there is no file to resume.
        first: Returns the first message of a stream that starts at an offset in bytes.
        more: Returns a message with chunk, chunk_crc32c and compression.
        whole: The method for a single message, which then has a whole small file, too.
        attempts: How many attempts in a row may fail without progress; None for any number.
        progress: Called after every chunk.

    Returns:
        The server's response.

    Raises:
        FedroundError: The server answered with an error that is not transient, or the last attempt failed.
        Exception: Reading the file, or `progress`, raised it.
    """
    sender = _Sender(rpc, method, payload, upload_id, first, more, whole, progress)
    known, is_resumed = 0, False
    with rpc.traces.span("upload"):
        rpc.traces.set("size_bytes", payload.size_bytes)
        for attempt in rpc.retrying(attempts):
            with attempt:
                if is_resumed and upload_id:
                    sender.find_offset()
                    rpc.traces.event("resumed", sender.committed)
                    if sender.committed > known:
                        attempt.retry_state.attempt_number = 1
                    known = sender.committed
                is_resumed = True
                return sender.send()
    raise AssertionError("unreachable: the last attempt returns or raises")


class _Sender(Generic[Request, Response]):
    """Sends one file.

    Attributes:
        committed: How many bytes have arrived, as far as is known.
    """

    def __init__(
        self,
        rpc: Rpc,
        method: grpc.StreamUnaryMultiCallable[Request, Response],
        payload: Payload,
        upload_id: str,
        first: Callable[[int], Request],
        more: Callable[..., Request],
        whole: grpc.UnaryUnaryMultiCallable[Request, Response] | None,
        progress: Progress | None,
    ) -> None:
        self._rpc = rpc
        self._method = method
        self._payload = payload
        self._upload_id = upload_id
        self._first = first
        self._more = more
        self._whole = whole
        self._progress = progress
        self.committed = 0
        self._patience = SILENCE_TIMEOUT + payload.size_bytes / CHECKED_PER_SECOND
        # Bytes of the file in one stream; None for all.
        self._limit: int | None = None
        # Where the latest stream stopped, in bytes of the file.
        self._end = 0
        self._failures: list[Exception] = []

    def find_offset(self) -> None:
        """Asks the server how much of the file has arrived."""
        request = GetUploadRequest(upload_id=self._upload_id)
        self.committed = self._rpc.unary(self._rpc.rounds.GetUpload, request).committed_size

    def send(self) -> Response:
        """Sends the rest of the file.

        Raises:
            FedroundError: A stream failed.
            Exception: Reading the file, or `progress`, raised it.
        """
        while True:
            try:
                return self._stream()
            except RequestBodyLimit:
                if not self._lower_limit():
                    raise
                self.find_offset()
            except UploadIncomplete:
                known = self.committed
                if self._limit is not None:
                    self.find_offset()
                if self.committed <= known:
                    raise

    def _stream(self) -> Response:
        silence = Silence(self._rpc.clock, self._patience)
        self._end = self.committed
        try:
            if self._whole is not None and self._limit is None:
                rest = self._payload.rest(self.committed, MAX_CHUNK)
                if rest is not None:
                    return self._send_whole(self._whole, rest, silence)
            return self._rpc.send(self._method, self._messages(silence), silence)
        except FedroundError:
            if self._failures:
                raise self._failures[0] from None
            if silence.expired:
                # It may be slow: an attempt that is given up too early would be repeated for ever.
                self._patience *= 2
            raise

    def _send_whole(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Response], rest: bytes, silence: Silence
    ) -> Response:
        """Sends the rest of the file with the first message."""
        message: Any = self._first(self.committed)
        if rest:
            data, compression = compress(rest, self._rpc.compression)
            crc = google_crc32c.value(rest)
            if compression:
                message.MergeFrom(self._more(chunk=data, chunk_crc32c=crc, compression=compression))
            else:
                message = ChunkMessage(rest, crc, spec=message.spec)
        self._end = self._payload.size_bytes
        if self._progress is not None:
            # Before the server can accept the file: if this raises, the caller is told that it did not.
            self._progress(self._end, self._end)
        silence.waiting()
        return self._rpc.send(method, message, silence)

    def _messages(self, silence: Silence) -> Iterator[Any]:
        start = self.committed
        try:
            head = self._first(start)
            silence.waiting()
            yield head
            silence.answered()
            for chunk, end in self._payload.chunks(start):
                if self._limit is not None and end - start > self._limit:
                    break
                data, compression = compress(chunk, self._rpc.compression)
                # It does not take a memoryview.
                crc = google_crc32c.value(np.frombuffer(chunk, np.uint8))
                self._end = end
                silence.waiting()
                if compression:
                    yield self._more(chunk=data, chunk_crc32c=crc, compression=compression)
                else:
                    # The codec takes any buffer.
                    yield ChunkMessage(cast("bytes", data), crc)
                # gRPC has encoded it: its tensor may be a copy, which is not needed any more.
                del chunk, data
                silence.answered()
                if self._progress is not None:
                    self._progress(end, self._payload.size_bytes)
        except Exception as error:
            # gRPC reports an exception of its request iterator as a lost connection.
            self._failures.append(error)
            raise
        silence.waiting()

    def _lower_limit(self) -> bool:
        """Lowers the size of streams, after a proxy has rejected one; returns False if that is not possible."""
        sent = self._end - self.committed
        if not self._upload_id or sent <= CHUNK:
            return False
        self._limit = max(sent // 2, CHUNK)
        logger.warning(
            "A proxy on the way limits request bodies: the file is sent in streams of at most %d bytes. It is faster"
            " if the proxy has no limit; for nginx, client_max_body_size 0.",
            self._limit,
        )
        return True
