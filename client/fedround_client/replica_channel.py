"""One channel over the replicas of a server."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import grpc

from fedround_client.channel import IDEMPOTENT, Target
from fedround_client.errors import from_rpc_error
from fedround_client.probe import is_not_connected
from fedround_client.replicas import Replica, Replicas

PAUSES = (0.0, 0.2, 0.4, 0.8, 1.6)
"""Seconds at most before each round in which an idempotent call is tried at all replicas."""

_Serializer = Callable[[Any], bytes] | None
_Deserializer = Callable[[bytes], Any] | None


class ReplicaError(grpc.RpcError):
    """The error of a call to a replica.

    Attributes:
        replica: The replica.
    """

    def __init__(self, error: Any, replica: Replica) -> None:
        """Takes the error that grpc raised."""
        super().__init__(*error.args)
        self.replica = replica
        self._error = error

    def code(self) -> grpc.StatusCode:
        """Returns the status code."""
        return self._error.code()  # type: ignore[no-any-return]

    def details(self) -> str | None:
        """Returns the message."""
        return self._error.details()  # type: ignore[no-any-return]

    def trailing_metadata(self) -> Any:
        """Returns the metadata that came with the status."""
        return self._error.trailing_metadata()


class ReplicaChannel(grpc.Channel):
    """Spreads calls over replicas, and repeats them at another one where that is safe.

    A call is repeated if its replica has not begun with it, or if its method is idempotent. Server streams are, until
    their first message. Uploads are not repeated here: their callers resume them.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        """Opens the channels.

        Raises:
            OSError: A file of TLS cannot be read.
        """
        self._replicas = Replicas(targets)

    def unary_unary(
        self,
        method: str,
        request_serializer: _Serializer = None,
        response_deserializer: _Deserializer = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """Returns a unary method."""
        return _Unary(self._replicas, "unary_unary", method, request_serializer, response_deserializer)

    def unary_stream(
        self,
        method: str,
        request_serializer: _Serializer = None,
        response_deserializer: _Deserializer = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """Returns a server-streaming method."""
        return _ServerStreaming(self._replicas, "unary_stream", method, request_serializer, response_deserializer)

    def stream_unary(
        self,
        method: str,
        request_serializer: _Serializer = None,
        response_deserializer: _Deserializer = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """Returns a client-streaming method."""
        return _Method(self._replicas, "stream_unary", method, request_serializer, response_deserializer)

    def stream_stream(self, method: str, *_: Any, **__: Any) -> NoReturn:
        """The API has no such method.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(method)

    def subscribe(self, callback: Any, try_to_connect: bool | None = False) -> NoReturn:
        """Several connections have no common state.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError

    def unsubscribe(self, callback: Any) -> NoReturn:
        """As `subscribe`."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes the channels; calls in progress fail."""
        self._replicas.close()

    def __enter__(self) -> ReplicaChannel:
        """Returns the channel."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the channel."""
        self.close()


class _Method:
    """A method at all replicas, which can be begun at the next one."""

    def __init__(self, replicas: Replicas, kind: str, path: str, *codec: Any) -> None:
        self._replicas = replicas
        self._path = path
        self._methods = {replica: getattr(replica.channel, kind)(path, *codec) for replica in replicas.all}

    def future(self, sent: Any, **options: Any) -> ReplicaCall:
        """Begins a call."""
        replica = self._replicas.in_turn()[0]
        return ReplicaCall(self._replicas, replica, self._methods[replica].future(sent, **options))


class _Unary(_Method):
    """A unary method."""

    def __call__(self, request: Any, timeout: float | None = None, **options: Any) -> Any:
        """Calls it; raises ReplicaError."""
        end = None if timeout is None else time.monotonic() + timeout
        is_idempotent = self._path in IDEMPOTENT
        for pause in PAUSES if is_idempotent else PAUSES[:1]:
            time.sleep(pause * random.random())  # noqa: S311 -- not a secret
            for replica in self._replicas.in_turn():
                try:
                    return self._methods[replica](request, timeout=timeout, **options)
                except grpc.RpcError as error:
                    failure = ReplicaError(error, replica)
                    self._replicas.report(replica, failure.code())
                if not (_is_unavailable(failure) if is_idempotent else _was_not_begun(failure)):
                    raise failure
                if end is not None and (timeout := end - time.monotonic()) <= 0:
                    raise failure
        raise failure


class _ServerStreaming(_Method):
    """A server-streaming method. All of them read, so they may be called again."""

    def __call__(self, request: Any, **options: Any) -> ReplicaStream:
        """Begins a call."""

        def begin(replica: Replica) -> Any:
            return self._methods[replica](request, **options)

        return ReplicaStream(self._replicas, begin)


class ReplicaCall:
    """A call to one replica.

    Attributes:
        replica: The replica.
    """

    def __init__(self, replicas: Replicas, replica: Replica, call: Any) -> None:
        """Takes a call that was begun."""
        self.replica = replica
        self._replicas = replicas
        self._call = call

    def result(self) -> Any:
        """Waits for the response; raises ReplicaError."""
        try:
            return self._call.result()
        except grpc.RpcError as error:
            raise self._failed(error) from None

    def cancel(self) -> object:
        """Cancels the call; may be called from any thread."""
        return self._call.cancel()

    def suspect(self) -> None:
        """Has other replicas be used until this one is found to serve."""
        self._replicas.suspect(self.replica)

    def _failed(self, error: grpc.RpcError) -> ReplicaError:
        failure = ReplicaError(error, self.replica)
        self._replicas.report(self.replica, failure.code())
        return failure


class ReplicaStream(ReplicaCall):
    """A server stream, from the first replica that sends something."""

    def __init__(self, replicas: Replicas, begin: Callable[[Replica], Any]) -> None:
        """Begins the call at the next replica."""
        first, *self._others = replicas.in_turn()
        super().__init__(replicas, first, begin(first))
        self._begin = begin
        self._is_cancelled = False

    def __iter__(self) -> Iterator[Any]:
        """Iterates over the messages that are still to come; raises ReplicaError."""
        return self

    def __next__(self) -> Any:
        """Waits for the next message; raises ReplicaError."""
        while True:
            try:
                message = next(self._call)
            except grpc.RpcError as error:
                failure = self._failed(error)
                if not self._others or self._is_cancelled or not _is_unavailable(failure):
                    raise failure from None
                self.replica = self._others.pop(0)
                self._call = self._begin(self.replica)
                if self._is_cancelled:
                    self._call.cancel()
            else:
                self._others.clear()
                return message

    def cancel(self) -> object:
        """Cancels the call; may be called from any thread."""
        self._is_cancelled = True
        return super().cancel()


def _is_unavailable(error: ReplicaError) -> bool:
    return error.code() is grpc.StatusCode.UNAVAILABLE


def _was_not_begun(error: ReplicaError) -> bool:
    """Returns whether a replica has done nothing for a call: there was no connection, or it is shutting down."""
    if not _is_unavailable(error):
        return False
    reason = from_rpc_error(error, error.replica.address).reason
    return reason == "SERVER_LEAVING" or (reason == "UNAVAILABLE" and is_not_connected(error))


def open_channel_to(targets: Sequence[Target]) -> grpc.Channel:
    """Returns a channel to a server, or to its replicas, which connects with the first call.

    Raises:
        OSError: A file of TLS cannot be read.
    """
    return targets[0].open_channel() if len(targets) == 1 else ReplicaChannel(targets)
