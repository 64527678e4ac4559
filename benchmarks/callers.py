"""Callers of a server on the raw stubs, and the tiny model that they train."""

import hashlib
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from safetensors.numpy import save

from fedround.v1 import event_pb2, model_pb2_grpc, round_pb2, round_pb2_grpc, training_pb2, training_pb2_grpc
from fedround.v1.user_pb2 import CreateUserRequest
from fedround.v1.user_pb2_grpc import UserServiceStub


def tiny(*seeds: int) -> bytes:
    """Returns a file of eight numbers, another one for other seeds."""
    return save({"weight": np.random.default_rng(seeds).normal(size=8).astype(np.float32)})


class _Bound:
    """A stub whose calls carry a token."""

    def __init__(self, stub: Any, token: str) -> None:
        self._stub = stub
        self._metadata = (("authorization", f"Bearer {token}"),)

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._stub, name)
        return lambda request, **options: call(request, metadata=self._metadata, **options)


@dataclass
class Caller:
    """A user on a channel, which others may use too."""

    channel: grpc.Channel
    token: str
    user_id: str = ""
    users: Any = field(init=False)
    trainings: Any = field(init=False)
    rounds: Any = field(init=False)
    models: Any = field(init=False)

    def __post_init__(self) -> None:
        self.users = _Bound(UserServiceStub(self.channel), self.token)
        self.trainings = _Bound(training_pb2_grpc.TrainingServiceStub(self.channel), self.token)
        self.rounds = _Bound(round_pb2_grpc.RoundServiceStub(self.channel), self.token)
        self.models = _Bound(model_pb2_grpc.ModelServiceStub(self.channel), self.token)

    def on(self, channel: grpc.Channel) -> "Caller":
        """Returns the same user on another channel."""
        return Caller(channel, self.token, self.user_id)

    def make(self, name: str) -> "Caller":
        """Creates a client on the same channel."""
        made = self.users.CreateUser(CreateUserRequest(name=name, role="ROLE_CLIENT"))
        return Caller(self.channel, made.token, made.user.user_id)

    def train(
        self, participants: Sequence["Caller"], rounds: int, *, model: bytes = b"", **spec: Any
    ) -> training_pb2.Training:
        """Creates and starts a training of a model that fits into one message, by default a tiny one."""
        spec = {"name": "tiny", "target_num_updates": rounds, **spec}
        wanted = training_pb2.TrainingSpec(client_ids=[one.user_id for one in participants], **spec)
        message = training_pb2.CreateTrainingRequest(spec=wanted, chunk=model or tiny())
        made = self.trainings.CreateTraining(iter([message])).training
        self.trainings.StartTraining(training_pb2.StartTrainingRequest(training_id=made.training_id))
        return made

    def submit(self, training_id: str, number: int) -> None:
        """Submits an update, another one than any before, in one message."""
        data = tiny(uuid.UUID(training_id).int, uuid.UUID(self.user_id).int, number)
        wanted = round_pb2.UpdateSpec(
            training_id=training_id,
            round=number,
            num_examples=1,
            metrics={"loss": 0.5},
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
        )
        self.rounds.SubmitUpdate(iter([round_pb2.SubmitUpdateRequest(spec=wanted, chunk=data)]))

    def events(self, training_id: str, after: int | None = None) -> Any:
        """Subscribes to a training; `after` resumes behind a sequence."""
        resume = {} if after is None else {training_id: after}
        return self.rounds.Subscribe(
            round_pb2.SubscribeRequest(training_id=training_id, resume_after_sequence=resume), timeout=1200
        )


def submit_all(callers: Sequence[Caller], training_id: str, number: int, threads: int = 8) -> None:
    """Has each caller submit an update of its own, a few at a time."""

    def work(start: int) -> None:
        for caller in callers[start::threads]:
            caller.submit(training_id, number)

    workers = [threading.Thread(target=work, args=(start,)) for start in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def kind(event: event_pb2.Event) -> str:
    """Returns what an event tells of."""
    return str(event.WhichOneof("payload"))
