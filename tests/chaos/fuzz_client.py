"""What a server that means no good may answer to the SDK, fed over a channel that is none."""

import hashlib
import io
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2, status_pb2

import fedround_client as fr
from chaos.fuzz_server import MANIFEST, a_file
from chaos.fuzzing import TEXTS, Target, message, mutate
from fedround.v1 import event_pb2, inference_pb2, model_pb2, round_pb2, training_pb2, user_pb2
from fedround_client import download as downloads
from fedround_client.errors import FedroundError
from fedround_client.tensors import TensorError

IDS = ("123e4567-e89b-12d3-a456-426614174000", "223e4567-e89b-12d3-a456-426614174000")
HINTS: dict[str, Any] = {
    "training_id": IDS,
    "user_id": IDS[:1],
    "client_id": IDS,
    "model_id": IDS,
    "next_page_token": ["", "a"],
    "committed_size": [0, 3, 200],
    "kind": [1, 1, 1, 2, 3],
    "rank": [0, 2],
    "state": [2],
}
METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for module in (user_pb2, training_pb2, model_pb2, round_pb2, inference_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
NAPS = 20
ARRAY = np.zeros(3, np.float32)


class Enough(BaseException):
    """The client goes on trying for as long as it takes, as it should; the test does not."""


class _Alarm:
    def cancel(self) -> None: ...


class _Clock:
    """A clock whose sleeps return at once."""

    def __init__(self) -> None:
        self._naps = 0

    def time(self) -> float:
        return 0.0

    def sleep_for(self, seconds: float) -> None:
        self._naps += 1
        if self._naps > NAPS:
            raise Enough

    def call_in(self, call: Callable[[], object], seconds: float) -> _Alarm:
        return _Alarm()


class Failure(grpc.RpcError):
    """A failed call, with whatever details."""

    def __init__(self, rand: random.Random) -> None:
        super().__init__()
        self._code = rand.choice([code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
        self._text = rand.choice((*TEXTS, None))
        info = error_details_pb2.ErrorInfo(
            reason=rand.choice(("ROUND_NOT_OPEN", "TOKEN_INVALID", "X", "")), domain=rand.choice(("fedround", "x"))
        )
        status = status_pb2.Status(code=rand.choice((self._code.value[0], 0, 99)), message=self._text or "")
        for detail in (info, error_details_pb2.BadRequest()):
            packed = Packed()
            packed.Pack(detail)
            packed.value = mutate(rand, packed.value, 1)
            status.details.append(packed)
        data = mutate(rand, status.SerializeToString(), rand.choice((0, 1, 3)))
        self._metadata = (("grpc-status-details-bin", data),) if rand.random() < 0.8 else None

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._text

    def trailing_metadata(self) -> Any:
        return self._metadata


class _Stream:
    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items

    def __iter__(self) -> "Iterator[Any]":
        return self

    def __next__(self) -> Any:
        return next(self._items)

    def cancel(self) -> None: ...


class _Call:
    """The answer to a stream of requests: a message, or the failure of the call."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def result(self) -> Any:
        if isinstance(self._answer, Failure):
            raise self._answer
        return self._answer

    def cancel(self) -> None: ...


class Channel:
    """Answers each call with messages of the right type, or with a failure."""

    def __init__(self, rand: random.Random, file: bytes) -> None:
        self._rand = rand
        self.file = file
        self.announced = 0

    def close(self) -> None: ...

    def unary_unary(self, path: str, *_: Any, **__: Any) -> Callable[..., Any]:
        def call(request: Any, timeout: Any = None, metadata: Any = None) -> Any:
            if self._rand.random() < 0.1:
                raise Failure(self._rand)
            return self._message(path)

        def begin(request: Any, metadata: Any = None) -> _Call:
            return _Call(Failure(self._rand) if self._rand.random() < 0.5 else self._message(path))

        call.future = begin  # type: ignore[attr-defined]
        return call

    def stream_unary(self, path: str, *_: Any, **__: Any) -> SimpleNamespace:
        def begin(requests: Iterator[Any], metadata: Any = None) -> _Call:
            for _ in itertools.islice(requests, self._rand.choice((0, 1, 100))):
                pass
            if self._rand.random() < 0.5:
                return _Call(Failure(self._rand))
            return _Call(self._message(path))

        return SimpleNamespace(future=begin)

    def unary_stream(self, path: str, *_: Any, **__: Any) -> Callable[..., Any]:
        return lambda request, metadata=None: _Stream(self._stream(path))

    def _stream(self, path: str) -> Iterator[Any]:
        download = path.rpartition("/")[2].startswith("Download")
        yield from self._pieces() if download else (self._message(path) for _ in range(self._rand.randint(0, 6)))
        if self._rand.random() < 0.3:
            raise Failure(self._rand)

    def _pieces(self) -> Iterator[Any]:
        rand = self._rand
        digest = hashlib.sha256(self.file).hexdigest()
        info = event_pb2.ModelInfo(
            model_id=rand.choice(IDS),
            sha256=rand.choice(("", "0" * 64, *[digest] * 6)),
            size_bytes=rand.choice((0, *[len(self.file)] * 6, 1 << 62)),
        )
        self.announced = max(self.announced, info.size_bytes)
        if rand.random() < 0.8:
            yield model_pb2.DownloadModelResponse(info=info)
        for _ in range(rand.choice((0, 1, 1, 1, 1, 2, 1000))):
            chunk = self.file if rand.random() < 0.8 else rand.randbytes(3)
            yield model_pb2.DownloadModelResponse(chunk=chunk, info=info if rand.random() < 0.1 else None)

    def _message(self, path: str) -> Any:
        return message(self._rand, METHODS[path].output_type, HINTS)


def _client(rand: random.Random) -> tuple[fr.Client, Channel]:
    channel = Channel(rand, a_file(rand, MANIFEST))
    return fr.Client(channel, "token", clock=_Clock()), channel  # type: ignore[arg-type]


def _outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except Enough:
        return "goes on trying"
    except (FedroundError, TensorError, TimeoutError) as error:
        return type(error).__name__
    return "done"


@contextmanager
def participant(folder: Path) -> Iterator[Target]:
    """Taking part: events, models, and answers to whatever is asked."""

    def target(rand: random.Random) -> str:
        client, _ = _client(rand)
        return _outcome(
            lambda: client.participate(
                lambda model, round: (model, 1),
                lambda model, round: ({"accuracy": 0.5}, 1),
                training_id=rand.choice((None, *IDS)),
                until_finished=rand.random() < 0.5,
            )
        )

    yield target


@contextmanager
def watcher(folder: Path) -> Iterator[Target]:
    """The events of a training."""

    def target(rand: random.Random) -> str:
        client, _ = _client(rand)
        known: dict[str, int] = {}

        def watch() -> None:
            for event in itertools.islice(client.watch(rand.choice((None, IDS[0]))), 50):
                if event.training_id:
                    assert event.sequence > known.get(event.training_id, 0)
                    known[event.training_id] = event.sequence

        return _outcome(watch)

    yield target


@contextmanager
def answers(folder: Path) -> Iterator[Target]:
    """Unary answers, lists, and failures with any details."""

    def target(rand: random.Random) -> str:
        client, _ = _client(rand)
        calls: tuple[Callable[[], object], ...] = (
            lambda: list(itertools.islice(client.trainings(), 50)),
            lambda: list(itertools.islice(client.models(), 50)),
            lambda: client.get_round(IDS[0]),
            lambda: client.wait(IDS[0]),
            lambda: client.submit_update(IDS[0], 0, {"w": ARRAY}, 1),
            lambda: client.create_training({"w": ARRAY}, name="t", target_num_updates=1),
        )
        return _outcome(rand.choice(calls))

    yield target


@contextmanager
def download(folder: Path) -> Iterator[Target]:
    """Downloads: what is kept is what was announced, and no more."""

    def asked(offset: int, _: Any) -> model_pb2.DownloadModelRequest:
        return model_pb2.DownloadModelRequest(model_id=IDS[0], offset=offset)

    def target(rand: random.Random) -> str:
        client, channel = _client(rand)
        sink = io.BytesIO()
        outcome = _outcome(lambda: downloads.download(client._rpc, client._rpc.models.DownloadModel, asked, sink))
        if outcome == "done":
            assert sink.getvalue() == channel.file
        assert len(sink.getvalue()) <= len(channel.file) or channel.announced > len(channel.file)
        return outcome

    yield target


@contextmanager
def model_file(folder: Path) -> Iterator[Target]:
    """Files that claim to be models."""

    def target(rand: random.Random) -> str:
        data = mutate(rand, a_file(rand), rand.choice((0, 1, 3)))
        return _outcome(lambda: fr.from_safetensors(data))

    yield target


TARGETS: dict[str, tuple[Callable[[Path], Any], float]] = {
    "participant": (participant, 0.03),
    "watcher": (watcher, 0.02),
    "answers": (answers, 0.02),
    "download": (download, 0.02),
    "model_file": (model_file, 0.03),
}
