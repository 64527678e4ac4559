"""How scripted clients talk to a server that is killed all the time: they try again, and take notes."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from calls import new_id, read_error
from chaos.history import History
from chaos.lives import PATIENCE
from fedround.v1 import (
    event_pb2,
    model_pb2_grpc,
    round_pb2,
    round_pb2_grpc,
    training_pb2_grpc,
    user_pb2,
    user_pb2_grpc,
)

# The server is back soon, and nobody shall wait for a connection longer than it takes.
CHANNEL = tuple((f"grpc.{name}_reconnect_backoff_ms", 50) for name in ("initial", "min", "max"))
PAYLOADS = {
    name: "".join(part.capitalize() for part in name.split("_")) for name in event_pb2.Event.DESCRIPTOR.fields_by_name
}
# Between two tries.
PAUSE = 0.02
NOT_IN_THE_LOG = ("heartbeat", "going_away")
LAST = ("training_finished", "training_failed", "training_removed")


@dataclass(frozen=True)
class Refused:
    """What a call was answered with instead of a response."""

    reason: str
    message: str

    def __bool__(self) -> bool:
        return False


class Lost(Exception):
    """A call was answered with something that the caller could not expect; it is in the history."""


@dataclass(frozen=True)
class User:
    """Somebody with a token."""

    user_id: str
    token: str


class Desk:
    """Makes calls, again and again until they are answered."""

    def __init__(self, address: str, history: History, admin_token: str, hear: Callable[[], object]) -> None:
        self.history = history
        self._hear = hear
        self.admin = User("", admin_token)
        self._channel = grpc.insecure_channel(address, CHANNEL)
        self.users: Any = user_pb2_grpc.UserServiceStub(self._channel)
        self.trainings: Any = training_pb2_grpc.TrainingServiceStub(self._channel)
        self.rounds: Any = round_pb2_grpc.RoundServiceStub(self._channel)
        self.models: Any = model_pb2_grpc.ModelServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def call(self, user: User, method: Any, request: Any, *expected: str, **context: Any) -> Any:
        """Returns the response, or how the call was refused.

        Args:
            user: Who calls.
            method: The stub's method.
            request: A message; for a stream what makes its messages, for each try anew.
            expected: Reasons with which the call may be refused.
            context: Goes into the history with a surprise.
        """
        while True:
            sent = iter(request()) if callable(request) else request
            try:
                answer = method(sent, timeout=PATIENCE, metadata=_metadata(user), wait_for_ready=True)
                self._hear()
                return answer
            except grpc.RpcError as error:
                refused = self._read(error)
                if refused is None:
                    time.sleep(PAUSE)
                elif refused.reason in expected:
                    return refused
                else:
                    self.surprise(refused, **context)

    def cut(self, user: User, method: Any, requests: Iterable[Any], after: float) -> None:
        """Sends a stream, and hangs up before its end, after so many seconds."""
        call = method.future(_endless(requests), timeout=PATIENCE, metadata=_metadata(user), wait_for_ready=True)
        time.sleep(after)
        call.cancel()

    def events(self, user: User, training_id: str) -> Iterator[Any]:
        """Follows a training to its end, over cuts; what comes is noted."""
        sequence, kind = 0, ""
        while kind not in LAST:
            request = round_pb2.SubscribeRequest(training_id=training_id, resume_after_sequence={training_id: sequence})
            stream = self.rounds.Subscribe(request, timeout=PATIENCE, metadata=_metadata(user), wait_for_ready=True)
            try:
                for event in stream:
                    kind = event.WhichOneof("payload")
                    if kind in NOT_IN_THE_LOG:
                        continue
                    sequence = event.sequence
                    facts = {"training_id": training_id, "sequence": sequence, "event": PAYLOADS[kind]}
                    self.history.add("event", **facts)
                    yield event
            except grpc.RpcError as error:
                refused = self._read(error)
                if refused is not None and refused.reason in ("TRAINING_NOT_FOUND", "TOKEN_INVALID"):
                    return
                if refused is not None:
                    self.surprise(refused, training_id=training_id)
                time.sleep(PAUSE)
            finally:
                stream.cancel()

    def user(self, role: str) -> User:
        """Creates a user; a name whose reply was lost is left to whoever has its token."""
        while True:
            request = user_pb2.CreateUserRequest(name=new_id(), role=f"ROLE_{role}")
            made = self.call(self.admin, self.users.CreateUser, request, "USER_EXISTS")
            if made:
                self.history.add("user", user_id=made.user.user_id)
                return User(made.user.user_id, made.token)

    def surprise(self, refused: Refused, **context: Any) -> None:
        self.history.add("surprise", reason=refused.reason, message=refused.message, **context)
        raise Lost(refused.message)

    def _read(self, error: Any) -> Refused | None:
        """Returns how a call was refused; None if there was nobody to refuse it, or no database."""
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return None
        try:
            refusal = read_error(error)
        except AssertionError:
            # It was gRPC that said so, as it does of a call whose server is going down.
            gone = error.code() is grpc.StatusCode.CANCELLED
            return None if gone else Refused(error.code().name, error.details() or "")
        return Refused(refusal.reason, refusal.message)


def _metadata(user: User) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {user.token}"),)


def _endless(requests: Iterable[Any]) -> Iterator[Any]:
    """The requests, and then nothing for a while: who sends them has not ended the stream when it hangs up."""
    yield from requests
    time.sleep(0.05)
