"""Calls to the server: the caller's token on each, typed exceptions from each, back-off between attempts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential
from tenacity.wait import wait_base

from fedround.v1 import (
    audit_pb2_grpc,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    round_pb2,
    round_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
    user_pb2_grpc,
)
from fedround.v1.event_pb2 import Packing
from fedround_client.chunk_stubs import with_chunk_codec
from fedround_client.clock import Clock
from fedround_client.errors import FedroundError, TokenInvalid, TooManyCalls, from_rpc_error

Request = TypeVar("Request")
Response = TypeVar("Response")
Item = TypeVar("Item", covariant=True)
PagedRequest = TypeVar("PagedRequest", bound="_PagedRequest")
Page = TypeVar("Page", bound="_Page")

logger = logging.getLogger(__name__)

UNARY_TIMEOUT = 60.0
PAGE_SIZE = 1000
ATTEMPTS = 8
"""How often a transfer is tried without a byte of progress before it is given up."""

# Full jitter: many participants that lose the server at once must not come back at once, nor those it told to wait.
BACKOFF: wait_base = wait_random_exponential(multiplier=0.5, max=30)


class Stream(Protocol[Item]):
    """A server stream being read; reading it raises grpc.RpcError."""

    def __iter__(self) -> Iterator[Item]:
        """Iterates over what is still to come."""

    def __next__(self) -> Item:
        """Waits for the next message."""

    def cancel(self) -> object:
        """Ends the call, from any thread."""


class _PagedRequest(Protocol):
    page_size: int
    page_token: str


class _Page(Protocol):
    next_page_token: str


def is_transient(error: BaseException) -> bool:
    """Whether the call that raised this may be tried again."""
    return isinstance(error, FedroundError) and error.transient


def _is_too_fast(error: BaseException) -> bool:
    """Whether a call was refused before anything was done, because there were too many."""
    return isinstance(error, TooManyCalls)


class Rpc:
    """The stubs of one channel, and how they are called."""

    def __init__(
        self, channel: grpc.Channel, *, token: str | None, address: str, clock: Clock, packing: Packing.ValueType
    ) -> None:
        """Takes the channel; whoever opened it closes it.

        Args:
            channel: A grpc channel, or a fake one.
            token: The caller's token; None sends none.
            address: Where the channel leads, for error messages.
            clock: Tells the time between attempts.
            packing: How chunks of files are packed on their way.
        """
        self.users = user_pb2_grpc.UserServiceStub(channel)
        self.trainings = with_chunk_codec(
            training_pb2_grpc.TrainingServiceStub(channel), channel, training_pb2.DESCRIPTOR
        )
        self.models = with_chunk_codec(model_pb2_grpc.ModelServiceStub(channel), channel, model_pb2.DESCRIPTOR)
        self.rounds = with_chunk_codec(round_pb2_grpc.RoundServiceStub(channel), channel, round_pb2.DESCRIPTOR)
        self.inference = inference_pb2_grpc.InferenceServiceStub(channel)
        self.audit = audit_pb2_grpc.AuditServiceStub(channel)
        self.clock = clock
        self.packing = packing
        self.address = address
        self._metadata = (("authorization", f"Bearer {_checked(token)}"),) if token else ()

    @contextmanager
    def typed_errors(self) -> Iterator[None]:
        """Turns every grpc.RpcError raised inside into a FedroundError."""
        try:
            yield
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from error

    def unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: float | None = UNARY_TIMEOUT,
    ) -> Response:
        """Calls a unary method; a call that came too fast is made again when the server has time for it.

        The channel itself repeats those that may be repeated when the connection is lost.

        Args:
            method: The method.
            request: Its request.
            timeout: Seconds; None leaves it to the server.

        Raises:
            FedroundError: The call failed.
        """

        def call() -> Response:
            with self.typed_errors():
                return method(request, timeout=timeout, metadata=self._metadata)

        return self.retrying(ATTEMPTS, when=_is_too_fast)(call)

    def pages(self, method: grpc.UnaryUnaryMultiCallable[PagedRequest, Page], request: PagedRequest) -> Iterator[Page]:
        """Calls a method that lists things until its last page.

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

    def send(self, method: grpc.StreamUnaryMultiCallable[Request, Response], requests: Iterator[Request]) -> Response:
        """Calls a client-streaming method once.

        Raises:
            FedroundError: The call failed.
        """
        with self.typed_errors():
            return method(requests, metadata=self._metadata)

    def open(self, method: grpc.UnaryStreamMultiCallable[Request, Response], request: Request) -> Stream[Response]:
        """Opens a server stream, to be read within typed_errors and cancelled at the end."""
        return method(request, metadata=self._metadata)

    def retrying(
        self,
        attempts: int | None,
        nap: Callable[[float], None] | None = None,
        when: Callable[[BaseException], bool] = is_transient,
    ) -> Retrying:
        """Attempts at something that may meet transient errors, with back-off between them.

        Args:
            attempts: How many in a row may fail; None for any number. Setting the attempt_number of the
                attempt's retry_state to 1 begins the row again, after progress.
            nap: Sleeps so many seconds; the clock's own by default.
            when: Tells which errors are worth another attempt.

        Returns:
            What `for attempt in ...: with attempt: ...` loops over. The last error is raised as it is.
        """

        def stop(state: RetryCallState) -> bool:
            return attempts is not None and state.attempt_number >= attempts

        return Retrying(
            sleep=nap or self.clock.sleep_for,
            wait=_wait,
            stop=stop,
            before_sleep=_tell,
            retry=retry_if_exception(when),
            reraise=True,
        )


def duration(seconds: float | None) -> Duration | None:
    """Encodes seconds; None stays unset."""
    if seconds is None:
        return None
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def _checked(token: str) -> str:
    """The token without the white space that files end with."""
    stripped = token.strip()
    if not stripped.isascii() or not stripped.isprintable() or " " in stripped:
        raise TokenInvalid(
            grpc.StatusCode.UNAUTHENTICATED,
            "TOKEN_INVALID",
            "The token has characters that no token has: is it the content of the right file?",
        )
    return stripped


def _wait(state: RetryCallState) -> float:
    """What the server asked for, if it did, and a random time on top."""
    error = None if state.outcome is None else state.outcome.exception()
    return BACKOFF(state) + (getattr(error, "retry_after", None) or 0.0)


def _tell(state: RetryCallState) -> None:
    """Logs a failed attempt, ever more rarely: the 1st, 2nd, 4th, 8th, ... in a row."""
    number = state.attempt_number
    if number & (number - 1) == 0 and state.outcome is not None:
        times = f", {number} times in a row" if number > 1 else ""
        logger.warning("Trying again%s: %s", times, state.outcome.exception())
