"""Raw calls over a real port, and their responses and errors."""

import hashlib
import itertools
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from safetensors.numpy import save

from fedround.v1 import (
    audit_pb2_grpc,
    control_pb2_grpc,
    event_pb2,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    round_pb2,
    round_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
    user_pb2,
    user_pb2_grpc,
)

TIMEOUT = 100
"""Seconds until a call is given up: a limit for what hangs, below that of the test."""
MODEL = {"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float64), "count": np.array(0, np.int64)}


def model_file(offset: float = 0.0, **changed: np.ndarray) -> bytes:
    """The model as a file, with something added, and tensors changed."""
    tensors = {name: np.asarray(tensor + offset, tensor.dtype) for name, tensor in MODEL.items()}
    return save({**tensors, **changed})


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def until(condition: Callable[[], object]) -> None:
    """Polls until a condition holds; the test's own timeout is the limit."""
    while not condition():
        time.sleep(0.01)


def new_id() -> str:
    return str(uuid.uuid4())


def new_number() -> int:
    """A number of 48 random bits, for a file unlike all others; a float64 holds it exactly."""
    return uuid.uuid4().int >> 80


@dataclass
class Person:
    """A user with a channel of its own."""

    channel: grpc.Channel
    token: str
    user_id: str = ""
    users: Any = field(init=False)
    trainings: Any = field(init=False)
    control: Any = field(init=False)
    rounds: Any = field(init=False)
    models: Any = field(init=False)
    inference: Any = field(init=False)
    audit: Any = field(init=False)

    def __post_init__(self) -> None:
        channel = grpc.intercept_channel(self.channel, _Token(self.token))
        self.users = user_pb2_grpc.UserServiceStub(channel)
        self.trainings = training_pb2_grpc.TrainingServiceStub(channel)
        self.control = control_pb2_grpc.ControlServiceStub(channel)
        self.rounds = round_pb2_grpc.RoundServiceStub(channel)
        self.models = model_pb2_grpc.ModelServiceStub(channel)
        self.inference = inference_pb2_grpc.InferenceServiceStub(channel)
        self.audit = audit_pb2_grpc.AuditServiceStub(channel)

    def make(self, address: str, role: str, name: str = "") -> "Person":
        """Creates another user."""
        made = self.users.CreateUser(user_pb2.CreateUserRequest(name=name or new_id(), role=f"ROLE_{role}"))
        return Person(grpc.insecure_channel(address), made.token, made.user.user_id)

    def create(self, data: bytes | None = None, **spec: Any) -> training_pb2.Training:
        """Creates a training, in one message if its model is small."""
        wanted = training_pb2.TrainingSpec(**{"name": "t", "target_num_updates": 1, **spec})
        chunks = [one.chunk for one in update_chunks(model_file() if data is None else data)]
        messages = [training_pb2.CreateTrainingRequest(chunk=chunk) for chunk in chunks or [b""]]
        messages[0].spec.CopyFrom(wanted)
        return self.trainings.CreateTraining(iter(messages), timeout=TIMEOUT).training

    def start(self, training_id: str) -> training_pb2.Training:
        request = training_pb2.StartTrainingRequest(training_id=training_id)
        return self.trainings.StartTraining(request, timeout=TIMEOUT).training

    def get(self, training_id: str) -> training_pb2.Training:
        return self.trainings.GetTraining(training_pb2.GetTrainingRequest(training_id=training_id)).training

    def submit(self, training_id: str, data: bytes, number: int = 0, **spec: Any) -> round_pb2.UpdateReceipt:
        """Submits an update in chunks."""
        wanted = update_spec(training_id, data, round=number, **spec)
        messages = [round_pb2.SubmitUpdateRequest(spec=wanted), *update_chunks(data)]
        return self.rounds.SubmitUpdate(iter(messages), timeout=TIMEOUT).receipt

    def subscribe(self, training_id: str = "", **cursors: Any) -> "Events":
        """Subscribes; when this returns, the server has accepted the call."""
        stream = self.rounds.Subscribe(round_pb2.SubscribeRequest(training_id=training_id, **cursors), timeout=TIMEOUT)
        stream.initial_metadata()
        return Events(stream)


class Events:
    """A subscription without its heartbeats: they come in between whenever the machine is slow."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> event_pb2.Event:
        return next(event for event in self.stream if not event.HasField("heartbeat"))

    def next(self, count: int) -> list[event_pb2.Event]:
        """The next events."""
        return list(itertools.islice(self, count))

    def cancel(self) -> None:
        self.stream.cancel()


def update_spec(training_id: str, data: bytes, **changed: Any) -> round_pb2.UpdateSpec:
    fields = {"num_examples": 1, "sha256": digest(data), "size_bytes": len(data), **changed}
    return round_pb2.UpdateSpec(training_id=training_id, **fields)


def update_chunks(data: bytes, size: int = 1 << 20) -> Iterator[round_pb2.SubmitUpdateRequest]:
    for start in range(0, len(data), size):
        yield round_pb2.SubmitUpdateRequest(chunk=data[start : start + size])


def download(person: Person, model_id: str, **request: Any) -> tuple[Any, bytes]:
    """Downloads a version; returns its info and its file."""
    return whole(person.models.DownloadModel(model_pb2.DownloadModelRequest(model_id=model_id, **request)))


def whole(stream: Iterator[Any]) -> tuple[Any, bytes]:
    """Returns the info that a download begins with, and the bytes of all its chunks."""
    first, *rest = stream
    assert first.HasField("info")
    assert not any(message.HasField("info") for message in rest)
    return first.info, first.chunk + b"".join(message.chunk for message in rest)


def kinds(events: Sequence[Any]) -> list[str]:
    return [event.WhichOneof("payload") for event in events]


@dataclass(frozen=True)
class ErrorDetails:
    """The details of a failed call."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: dict[str, str]
    fields: dict[str, str]
    details: list[str]


# With which words the message of a reason helps; where they differ from case to case, the test has to say.
HELP = {
    "TOKEN_MISSING": "send metadata",
    "TOKEN_INVALID": "ask an admin for a new one",
    "TOKEN_EXPIRED": "ask an admin for a new one",
    "TOKEN_NOT_FOUND": "check the id",
    "CERTIFICATE_MISMATCH": "send no token",
    "CERTIFICATE_AMBIGUOUS": "use one whose subjectAltName",
    "CERTIFICATE_NAME_TAKEN": "remove it from that user first",
    "NOT_ACTOR": "ask the actor",
    "NOT_IN_COHORT": "round_started",
    "TRAINING_NOT_FOUND": "check the id",
    "MODEL_NOT_FOUND": "check the id",
    "USER_NOT_FOUND": "check the id",
    "ROUND_NOT_FOUND": "check the number",
    "UNKNOWN_CLIENTS": "nothing was changed",
    "USER_EXISTS": "choose another name",
    "LAST_ADMIN": "create another one first",
    "NO_PARTICIPANTS": "register clients first",
    "TRAINING_NOT_INITIAL": "only an INITIAL one can be started",
    "TRAINING_RUNNING": "set force",
    "TRAINING_NOT_RUNNING": "it cannot be",
    "TRAINING_PAUSED": "resume it",
    "TRAINING_NOT_PAUSED": "rounds open by themselves",
    "LAST_PARTICIPANT": "remove the training (force) instead",
    "MODEL_IN_USE": "wait for its end or remove it",
    "UPDATE_EXISTS": "it stands",
    "METRICS_EXIST": "they stand",
    "UPDATE_SUPERSEDED": "wait for the next round_started",
    "UPDATE_NORM": "or clip it",
    "NUM_EXAMPLES": "must be in 0..",
    "UPLOAD_INCOMPLETE": "send it again, or resume it by upload_id",
    "UPLOAD_OFFSET": "ask GetUpload and resume there",
    "UPLOAD_SUPERSEDED": "leave it to that call",
    "DIGEST_MISMATCH": "send it again",
    "CHUNK_CORRUPT": "send them again",
    "MODEL_DAMAGED": "restore it from a backup",
    "CURSOR_EXPIRED": "subscribe without it",
    "BACKUP_IN_PROGRESS": "try again when it is complete",
    "MODEL_TOO_LARGE": "ask the operator for more",
    "QUOTA": "remove",
    "DISK_FULL": "try again when",
    "TOO_MANY_CALLS": "nothing was done",
    "STORE_UNAVAILABLE": "try again",
}


class fails_with:  # noqa: N801 - reads like pytest.raises
    """The block's call must fail with a code and a reason; the message must contain the words, and help."""

    def __init__(self, code: str, reason: str, *words: str) -> None:
        words += (HELP[reason],) if reason in HELP else ()
        assert words, f"what does the message of {reason} say?"
        self._code, self._reason, self._words = code, reason, words
        self._raises = pytest.raises(grpc.RpcError)

    def __enter__(self) -> "fails_with":
        self._error = self._raises.__enter__()
        return self

    def __exit__(self, *exc: Any) -> bool:
        caught = bool(self._raises.__exit__(*exc))
        if caught:
            found = self.details
            assert (found.code.name, found.reason) == (self._code, self._reason), found
            assert all(word in found.message for word in self._words), found.message
        return caught

    @property
    def details(self) -> ErrorDetails:
        return read_error(self._error.value)


def read_error(error: Any) -> ErrorDetails:
    status = rpc_status.from_call(error)
    assert status is not None, f"no details in {error.code()}: {error.details()}"
    info, fields, details = error_details_pb2.ErrorInfo(), {}, []
    for packed in status.details:
        details.append(packed.TypeName().rpartition(".")[2])
        bad = error_details_pb2.BadRequest()
        if packed.Unpack(bad):
            fields = {violation.field: violation.description for violation in bad.field_violations}
        packed.Unpack(info)
    assert info.domain == "fedround"
    return ErrorDetails(error.code(), info.reason, status.message, dict(info.metadata), fields, details)


class _Token(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
):
    """Sends a token with each call."""

    def __init__(self, token: str) -> None:
        self._metadata = [("authorization", f"Bearer {token}")] if token else []

    def _go(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details._replace(metadata=[*(details.metadata or []), *self._metadata]), request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = _go
