"""A client of a server that is killed repeatedly: it retries its calls, and records the answers."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from calls import new_id, read_error
from chaos.history import History
from chaos.server_process import TIMEOUT_SECONDS
from fedround.v1 import (
    audit_pb2_grpc,
    control_pb2_grpc,
    event_pb2,
    model_pb2_grpc,
    round_pb2,
    round_pb2_grpc,
    training_pb2_grpc,
    user_pb2,
    user_pb2_grpc,
)
from fedround_client.channel import parse_targets
from fedround_client.replica_channel import open_channel_to

# The server is back soon, and no call shall wait for a connection longer than it takes.
CHANNEL = tuple((f"grpc.{name}_reconnect_backoff_ms", 50) for name in ("initial", "min", "max"))
PAYLOADS = {
    name: "".join(part.capitalize() for part in name.split("_")) for name in event_pb2.Event.DESCRIPTOR.fields_by_name
}
# Between two tries.
PAUSE = 0.02
NOT_IN_THE_LOG = ("heartbeat", "going_away")
LAST = ("training_finished", "training_failed", "training_removed")


@dataclass(frozen=True)
class CallError:
    """The error of a call."""

    reason: str
    message: str

    def __bool__(self) -> bool:
        return False


class UnexpectedError(Exception):
    """A call failed with an error that its caller does not expect; it is in the history."""


@dataclass(frozen=True)
class User:
    """A user with a token."""

    user_id: str
    token: str


class RetryingClient:
    """Repeats calls until they are answered."""

    def __init__(
        self, address: str, history: History, admin_token: str, on_answer: Callable[[], object], data_dir: Path
    ) -> None:
        """Opens the channel, to one address or to several with commas between them."""
        self.history = history
        # Where the server has its files, to damage some, one at a time.
        self.data_dir = data_dir
        self.damaging = threading.Lock()
        self._on_answer = on_answer
        self.admin = User("", admin_token)
        # With several addresses, as the SDK: what one of them does not answer is tried at the next.
        self._is_alone = "," not in address
        self._channel = (
            grpc.insecure_channel(address, CHANNEL) if self._is_alone else open_channel_to(parse_targets(address))
        )
        self.users: Any = user_pb2_grpc.UserServiceStub(self._channel)
        self.trainings: Any = training_pb2_grpc.TrainingServiceStub(self._channel)
        self.control: Any = control_pb2_grpc.ControlServiceStub(self._channel)
        self.rounds: Any = round_pb2_grpc.RoundServiceStub(self._channel)
        self.audit: Any = audit_pb2_grpc.AuditServiceStub(self._channel)
        self.models: Any = model_pb2_grpc.ModelServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def call(self, user: User, method: Any, request: Any, *expected: str, **context: Any) -> Any:
        """Returns the response, or the error of the call.

        Args:
            user: Who calls.
            method: The stub's method.
            request: A message; for a stream what makes its messages, for each try anew.
            expected: Reasons with which the call may fail.
            context: Goes into the history with an unexpected error.
        """
        while True:
            try:
                if callable(request):
                    answer = method.future(iter(request()), **self._options(user)).result()
                else:
                    answer = method(request, **self._options(user))
                self._on_answer()
                return answer
            except grpc.RpcError as error:
                call_error = self._read(error)
                if call_error is None:
                    time.sleep(PAUSE)
                elif call_error.reason in expected:
                    return call_error
                else:
                    self.report_unexpected(call_error, **context)

    def cut(self, user: User, method: Any, requests: Iterable[Any], after: float) -> None:
        """Sends a stream, and hangs up before its end, after so many seconds."""
        call = method.future(_endless(requests), **self._options(user))
        time.sleep(after)
        call.cancel()

    def events(self, user: User, training_id: str) -> Iterator[Any]:
        """Follows a training to its end, reconnecting as needed; records the events."""
        sequence, kind = 0, ""
        while kind not in LAST:
            request = round_pb2.SubscribeRequest(training_id=training_id, resume_after_sequence={training_id: sequence})
            stream = self.rounds.Subscribe(request, **self._options(user))
            try:
                for event in stream:
                    kind = event.WhichOneof("payload")
                    if kind in NOT_IN_THE_LOG:
                        continue
                    sequence = event.sequence
                    facts = {"training_id": training_id, "user_id": user.user_id, "sequence": sequence}
                    self.history.add("event", **facts, event=PAYLOADS[kind])
                    yield event
            except grpc.RpcError as error:
                call_error = self._read(error)
                if call_error is not None and call_error.reason in ("TRAINING_NOT_FOUND", "TOKEN_INVALID"):
                    return
                if call_error is not None:
                    self.report_unexpected(call_error, training_id=training_id)
                time.sleep(PAUSE)
            finally:
                stream.cancel()

    def user(self, role: str) -> User:
        """Creates a user, under another name if a reply was lost."""
        while True:
            request = user_pb2.CreateUserRequest(name=new_id(), role=f"ROLE_{role}")
            made = self.call(self.admin, self.users.CreateUser, request, "USER_EXISTS")
            if made:
                self.history.add("user", user_id=made.user.user_id)
                return User(made.user.user_id, made.token)

    def report_unexpected(self, call_error: CallError, **context: Any) -> None:
        self.history.add("unexpected", reason=call_error.reason, message=call_error.message, **context)
        raise UnexpectedError(call_error.message)

    def _options(self, user: User) -> dict[str, Any]:
        metadata = (("authorization", f"Bearer {user.token}"),)
        return {"timeout": TIMEOUT_SECONDS, "metadata": metadata, "wait_for_ready": self._is_alone}

    def _read(self, error: Any) -> CallError | None:
        """Returns the error of a call; None if the server or its database was unavailable."""
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return None
        try:
            details = read_error(error)
        except AssertionError:
            # gRPC itself reported it, as it does for a call whose server shuts down.
            gone = error.code() is grpc.StatusCode.CANCELLED
            return None if gone else CallError(error.code().name, error.details() or "")
        return CallError(details.reason, details.message)


def attempt(client: RetryingClient, run: Callable[[], object]) -> None:
    """Runs what makes calls by a client; what it does not expect of them is in the history."""
    try:
        run()
    except UnexpectedError:
        pass  # it is in the history, and the check finds it there
    except Exception as error:
        client.history.add("unexpected", reason=repr(error), message="in the campaign itself")
        raise


def _endless(requests: Iterable[Any]) -> Iterator[Any]:
    """The requests, and then nothing for a while: who sends them has not ended the stream when it hangs up."""
    yield from requests
    time.sleep(0.05)
