"""Calls to the server: with the caller's token, typed exceptions, and retries."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar, overload

import grpc
from google.protobuf.duration_pb2 import Duration
from tenacity import Retrying

from fedround.v1 import (
    audit_pb2_grpc,
    control_pb2_grpc,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    round_pb2,
    round_pb2_grpc,
    server_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
    user_pb2_grpc,
)
from fedround.v1.event_pb2 import Compression
from fedround.v1.round_pb2 import SubmitUpdateRequest, SubmitUpdateResponse
from fedround_client.channel import Target
from fedround_client.chunk_stubs import whole_upload, with_chunk_codec
from fedround_client.clock import Clock
from fedround_client.errors import ClientClosed, FedroundError, ServerUnavailable, TokenInvalid
from fedround_client.probe import connection_error
from fedround_client.replica_channel import ReplicaCall, ReplicaError
from fedround_client.retry import ATTEMPTS, is_rate_limited, is_transient, retrying
from fedround_client.silence import Silence
from fedround_client.traces import NO_TRACES, Traces

Request = TypeVar("Request")
Response = TypeVar("Response")
Item = TypeVar("Item", covariant=True)
Sent = TypeVar("Sent", contravariant=True)
PagedRequest = TypeVar("PagedRequest", bound="_PagedRequest")
Page = TypeVar("Page", bound="_Page")

UNARY_TIMEOUT = 60.0
PAGE_SIZE = 1000


class Stream(Protocol[Item]):
    """A server stream; reading it raises grpc.RpcError."""

    def __iter__(self) -> Iterator[Item]:
        """Iterates over the messages that are still to come."""

    def __next__(self) -> Item:
        """Waits for the next message."""

    def cancel(self) -> object:
        """Cancels the call; may be called from any thread."""


class Call(Protocol[Item]):
    """A call that was begun."""

    def result(self) -> Item:
        """Waits for the response; raises grpc.RpcError."""

    def cancel(self) -> object:
        """Cancels the call; may be called from any thread."""


class Sending(Protocol[Sent, Item]):
    """A method that can be called without waiting: a client-streaming one, or a unary one."""

    def future(self, sent: Sent, /, *, metadata: tuple[tuple[str, str], ...]) -> Call[Item]:
        """Begins the call with its message or messages."""


class _PagedRequest(Protocol):
    page_size: int
    page_token: str


class _Page(Protocol):
    next_page_token: str


class Rpc:
    """The stubs of one channel, and the ways to call them.

    Attributes:
        submit_whole: SubmitUpdate, for an update in one message.
        clock: Clock for retries and timeouts.
        compression: How chunks of files are compressed.
        address: The server's address, for error messages.
        session_id: UUID of this client, by which the server tells programs of the same user apart.
        closed: Whether the channel was closed by the user.
        traces: Makes spans.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        *,
        token: str | None,
        address: str,
        clock: Clock,
        compression: Compression.ValueType,
        target: Target | None = None,
        traces: Traces = NO_TRACES,
    ) -> None:
        """Creates the stubs. The caller closes the channel.

        Args:
            channel: A grpc channel, or a fake one.
            token: The caller's token; None to send none.
            address: The server's address, for error messages.
            clock: Clock for retries and timeouts.
            compression: How chunks of files are compressed.
            target: What the channel leads to, to find out why no connection is possible; None if that is not known.
            traces: Makes spans, of which calls tell the server.
        """
        trainings, models = training_pb2_grpc.TrainingServiceStub(channel), model_pb2_grpc.ModelServiceStub(channel)
        self.users = user_pb2_grpc.UserServiceStub(channel)
        self.trainings = with_chunk_codec(trainings, channel, training_pb2.DESCRIPTOR)
        self.models = with_chunk_codec(models, channel, model_pb2.DESCRIPTOR)
        self.rounds = with_chunk_codec(round_pb2_grpc.RoundServiceStub(channel), channel, round_pb2.DESCRIPTOR)
        submit = round_pb2.DESCRIPTOR.services_by_name["RoundService"].methods_by_name["SubmitUpdate"]
        self.submit_whole: grpc.UnaryUnaryMultiCallable[SubmitUpdateRequest, SubmitUpdateResponse]
        self.submit_whole = whole_upload(channel, submit)
        self.control = control_pb2_grpc.ControlServiceStub(channel)
        self.inference = inference_pb2_grpc.InferenceServiceStub(channel)
        self.audit = audit_pb2_grpc.AuditServiceStub(channel)
        self.server = server_pb2_grpc.ServerServiceStub(channel)
        self.clock = clock
        self.compression = compression
        self.address = address
        self.session_id = str(uuid.uuid4())
        self.closed = False
        self.traces = traces
        self._target = target
        self._has_answered = False
        self._metadata = _authorization(token) if token else ()

    def as_user(self, token: str, session_id: str) -> Rpc:
        """Returns the calls of another user over the same channel.

        Args:
            token: The user's token.
            session_id: UUID of the user's program.
        """
        other = copy.copy(self)
        other.session_id = session_id
        other._metadata = _authorization(token)
        return other

    def _call_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata + self.traces.headers()

    @contextmanager
    def typed_errors(self) -> Iterator[None]:
        """Converts every grpc.RpcError raised in the block to a FedroundError."""
        try:
            yield
            self._has_answered = True
        except grpc.RpcError as error:
            # Without its cause: a traceback would print the server's words as they are, in ten lines of gRPC's.
            raise self._typed(error) from None

    def _typed(self, error: grpc.RpcError) -> FedroundError:
        """Returns the exception for a failed call, with what can be found out about a connection that failed."""
        if self.closed and error.code() is grpc.StatusCode.CANCELLED:
            return ClientClosed(error.code(), "CLIENT_CLOSED", "The client was closed during the call.")
        is_first = not self._has_answered
        if not isinstance(error, ReplicaError):
            return connection_error(error, self._target, self.address, is_first=is_first)
        target = error.replica.target
        failure = connection_error(error, target, target.server, is_first=is_first)
        failure.address = target.server
        return failure

    def unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: float | None = UNARY_TIMEOUT,
    ) -> Response:
        """Calls a unary method, and repeats a call that was rejected by a rate limit.

        When the connection is lost, the channel itself repeats the methods that may be repeated.

        Args:
            method: The method.
            request: Its request.
            timeout: Seconds; None for the server's own limit.

        Raises:
            FedroundError: The call failed.
        """

        def call() -> Response:
            with self.typed_errors():
                return method(request, timeout=timeout, metadata=self._call_metadata())

        return self.retrying(ATTEMPTS, when=is_rate_limited)(call)

    def pages(self, method: grpc.UnaryUnaryMultiCallable[PagedRequest, Page], request: PagedRequest) -> Iterator[Page]:
        """Yields all pages of a method that lists objects.

        Raises:
            FedroundError: A call failed.
        """
        request.page_size = PAGE_SIZE
        while True:
            page = self.unary(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def send(self, method: Sending[Request, Response], sent: Request, silence: Silence | None = None) -> Response:
        """Calls a method once, for as long as the server is not silent.

        Args:
            method: The method.
            sent: Its message, or an iterator of its messages, which tell `silence` when they are ready to be sent.
            silence: Ends the call when the server takes no message, or gives no answer; by default it has no limit.

        Raises:
            FedroundError: The call failed.
        """
        # Without messages that tell it that they wait, it never expires.
        silence = silence or Silence(self.clock)
        call = method.future(sent, metadata=self._call_metadata())
        try:
            with self.typed_errors(), silence.limited(call.cancel):
                return call.result()
        except (grpc.FutureCancelledError, FedroundError):
            if silence.expired:
                raise self.unavailable(f"did not answer an upload for {silence.seconds:.0f} s", call) from None
            raise
        finally:
            call.cancel()

    def open(self, method: grpc.UnaryStreamMultiCallable[Request, Response], request: Request) -> Stream[Response]:
        """Opens a server stream. The caller reads it with `read` or in `typed_errors`, and cancels it at the end."""
        return method(request, metadata=self._call_metadata())

    def read(self, stream: Stream[Item]) -> Iterator[Item]:
        """Yields the messages of a server stream.

        Raises:
            FedroundError: The call failed, or the server sent nothing for a minute.
        """
        silence = Silence(self.clock)
        try:
            with self.typed_errors(), silence.limited(stream.cancel):
                silence.waiting()
                for message in stream:
                    silence.answered()
                    yield message
                    silence.waiting()
        except FedroundError:
            if silence.expired:
                raise self.unavailable(f"sent nothing for {silence.seconds:.0f} s", stream) from None
            raise

    def unavailable(self, what: str, call: object = None) -> ServerUnavailable:
        """Returns the exception for a server that behaves as one that is gone; if there are others, they are used.

        Args:
            what: What it did, after "The server at HOST:PORT".
            call: The call in which it did that.
        """
        address = self.address
        if isinstance(call, ReplicaCall):
            call.suspect()
            address = call.replica.address
        message = f"The server at {address} {what}"
        return ServerUnavailable(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", message)

    def retrying(
        self,
        attempts: int | None,
        sleep: Callable[[float], None] | None = None,
        when: Callable[[BaseException], bool] = is_transient,
    ) -> Retrying:
        """Returns the attempts of an operation, with back-off between them; see `fedround_client.retry.retrying`.

        Args:
            attempts: How many in a row may fail; None for any number.
            sleep: Sleeps for a number of seconds; that of the clock by default.
            when: Returns whether an error is worth another attempt.
        """
        return retrying(attempts, sleep or self.clock.sleep_for, when)


@overload
def duration(seconds: float) -> Duration: ...
@overload
def duration(seconds: float | None) -> Duration | None: ...
def duration(seconds: float | None) -> Duration | None:
    """Returns seconds as a protobuf Duration; None stays None."""
    if seconds is None:
        return None
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def _authorization(token: str) -> tuple[tuple[str, str], ...]:
    """Returns the metadata of calls that are made with a token."""
    return (("authorization", f"Bearer {_valid_token(token)}"),)


def _valid_token(token: str) -> str:
    """Returns the token without the white space that files end with."""
    stripped = token.strip()
    if not stripped.isascii() or not stripped.isprintable() or " " in stripped:
        raise TokenInvalid(
            grpc.StatusCode.UNAUTHENTICATED,
            "TOKEN_INVALID",
            "The token contains characters that no token has: is it the content of the right file?",
        )
    return stripped
