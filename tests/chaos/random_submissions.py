"""What the participants of a random training submit: updates, reports and failures, drawn from a seed."""

import random
import time
from collections.abc import Iterator
from typing import Any

from calls import digest, new_id
from chaos import tensors
from chaos.retrying_client import RetryingClient, User
from fedround.v1 import aggregation_pb2, event_pb2, round_pb2

CLOSED = ("ROUND_NOT_OPEN", "NOT_IN_COHORT", "UPDATE_SUPERSEDED", "TRAINING_NOT_FOUND", "TOKEN_INVALID")
GONE = ("TRAINING_NOT_FOUND", "TRAINING_ENDED", "TOKEN_INVALID")
METRIC = "accuracy"
SMALL = 1 << 20
"""Larger updates, in bytes, and slow ones are written to a file while they arrive; others come to the journal."""
PATHS = (0, 0.0), (SMALL, 0.0), (0, 0.4)
"""A small, a large and a slow update: how much padding it has, in bytes, and how long it stops half way, in seconds."""
OFTEN = (75, 20, 5)
HALF = {aggregation_pb2.UPDATE_PRECISION_FLOAT16: "F16", aggregation_pb2.UPDATE_PRECISION_BFLOAT16: "BF16"}


class RandomSubmissions:
    """Submits for the participants of one training."""

    _actor: User

    def __init__(self, client: RetryingClient, seed: str, odd: float) -> None:
        """Draws them; `odd` is how often a participant fails, or has no examples."""
        self._client = client
        self._draw = random.Random(seed)
        # Apart, so that a seed draws the same trainings whether or not participants fail.
        self._odd_draw = random.Random(f"odd {seed}")
        self._odd = odd
        self._paths = _draw_paths(random.Random(f"paths {seed}"))
        self._kinds = tensors.shapes(self._draw)
        # The tensors of an update.
        self._trained: tensors.Kinds = self._kinds
        # What each user submitted last: the round, the method, and a request that submits it again.
        self._sent: dict[str, tuple[int, Any, Any]] = {}
        self._training_id = ""
        self._is_buffered = False

    def _is_odd(self) -> bool:
        return self._odd_draw.random() < self._odd

    def _fail(self, user: User, started: Any) -> bool:
        """Reports a failure, sometimes twice; returns whether the user submits all the same."""
        request = round_pb2.ReportFailureRequest(
            training_id=self._training_id, round=started.round, reason="TRAIN_FAILED", message=new_id()
        )
        for _ in range(1 + (self._odd_draw.random() < 0.3)):
            answer = self._ask(user, self._client.rounds.ReportFailure, request, *self._refusals)
            # In an asynchronous training, it counts in the round that is open.
            if answer and not self._is_buffered:
                self._record("failure", round=started.round, user_id=user.user_id, reason=request.reason)
        return self._odd_draw.random() < 0.3

    @property
    def _refusals(self) -> tuple[str, ...]:
        """Why an update may be refused, or a failure: in an asynchronous training, a round may have another one."""
        return (*CLOSED, "UPDATE_STALE", "UPDATE_EXISTS") if self._is_buffered else CLOSED

    def _find_round(self, number: int) -> Any:
        """Returns a round as its actor sees it; None if the training is gone."""
        request = round_pb2.GetRoundRequest(training_id=self._training_id, round=number)
        found = self._ask(self._actor, self._client.rounds.GetRound, request, *GONE)
        return found.round if found else None

    def _is_open(self, number: int) -> bool:
        found = self._find_round(number)
        return found is not None and found.state == round_pb2.ROUND_STATE_OPEN

    def _send(self, user: User, started: Any) -> Any:
        """Submits what a round asks for; returns the receipt of an update that was accepted."""
        if started.kind == event_pb2.ROUND_KIND_EVALUATE:
            self._report(user, started)
            return None
        return self._submit(user, started)

    def _report(self, user: User, started: Any) -> None:
        metrics = {METRIC: self._draw.random(), "loss": self._draw.random()}
        examples = self._draw.randint(1, 1000)
        request = round_pb2.SubmitMetricsRequest(
            training_id=self._training_id, round=started.round, metrics=metrics, num_examples=examples
        )
        if self._ask(user, self._client.rounds.SubmitMetrics, request, *CLOSED):
            self._record("report", round=started.round, user_id=user.user_id, metrics=metrics, num_examples=examples)
            self._sent[user.user_id] = (started.round, self._client.rounds.SubmitMetrics, request)
            other = round_pb2.SubmitMetricsRequest()
            other.CopyFrom(request)
            other.num_examples += 1
            if self._draw.random() < 0.1 and self._ask(
                user, self._client.rounds.SubmitMetrics, other, *CLOSED, "METRICS_EXIST"
            ):
                self._record("unexpected", reason="a second report was accepted")

    def _submit(self, user: User, started: Any) -> Any:
        draw = self._draw
        if started.assigned and draw.random() < 0.3:
            self._download(
                user, self._client.rounds.DownloadAssignedModel, round_pb2.DownloadAssignedModelRequest, started
            )
        has_control = started.aggregation.HasField("scaffold")
        if has_control and self._odd_draw.random() < 0.3:
            self._download(user, self._client.rounds.DownloadControl, round_pb2.DownloadControlRequest, started)
        if started.kind == event_pb2.ROUND_KIND_SWAG:
            content = tensors.moments(self._kinds, started.swag.rank, draw)
        else:
            kinds = self._precise(started)
            content = tensors.fill({**kinds, **tensors.control(self._trained)} if has_control else kinds, draw)
        padding, pause = next(self._paths)
        file = tensors.write(content, padding)
        spec = round_pb2.UpdateSpec(
            training_id=self._training_id,
            round=started.round,
            num_examples=draw.choice([1, draw.randint(1, 1000), draw.randint(1, 1 << 31)]),
            metrics={"loss": draw.random()},
            sha256=digest(file),
            size_bytes=len(file),
        )
        if self._is_odd():
            spec.num_examples = 0
        if draw.random() < 0.3:
            spec.upload_id = new_id()
            half = _messages(spec, file[: len(file) // 2])
            self._client.cut(user, self._client.rounds.SubmitUpdate, half, draw.uniform(0.001, 0.02))
        for _ in range(1 + (draw.random() < 0.15)):
            receipt = self._send_file(user, spec, file, pause)
            if receipt is not None:
                self._record(
                    "receipt",
                    round=receipt.round,
                    user_id=user.user_id,
                    update_id=receipt.update_id,
                    sha256=receipt.sha256,
                    size_bytes=len(file),
                    num_examples=spec.num_examples,
                    metrics=dict(spec.metrics),
                    accept_time=receipt.accept_time.ToMicroseconds(),
                )
                if receipt.num_examples != spec.num_examples:
                    self._record("unexpected", reason="a receipt has another number of examples")
                self._sent[user.user_id] = (
                    receipt.round,
                    self._client.rounds.SubmitUpdate,
                    lambda: _messages(_changed(spec, upload_id="", offset=0), file),
                )
        if receipt is not None and draw.random() < 0.1:
            self._submit_another(user, spec, file)
        return receipt

    def _precise(self, started: Any) -> tensors.Kinds:
        """Returns the tensors of an update: sometimes differences in half precision, where a round allows them."""
        half = HALF.get(started.update_precision)
        if half is None or self._odd_draw.random() < 0.3:
            return self._trained
        wide = ("F32", "F64")
        return {name: (half if dtype in wide else dtype, shape) for name, (dtype, shape) in self._trained.items()}

    def _send_file(self, user: User, spec: Any, file: bytes, pause: float) -> Any:
        """Sends an update, from where an earlier try stopped, with a pause in seconds; returns the receipt."""
        while True:
            if spec.upload_id:
                request = round_pb2.GetUploadRequest(upload_id=spec.upload_id)
                found = self._ask(user, self._client.rounds.GetUpload, request, *CLOSED)
                spec.offset = found.committed_size if found else 0
            answer = self._ask(
                user,
                self._client.rounds.SubmitUpdate,
                lambda: _messages(spec, file[spec.offset :], pause),
                *self._refusals,
                *("UPLOAD_OFFSET", "UPLOAD_INCOMPLETE", "UPLOAD_SUPERSEDED"),
            )
            if answer or answer.reason in self._refusals:
                return answer.receipt if answer else None

    def _submit_another(self, user: User, spec: Any, file: bytes) -> None:
        """Tries to submit updates other than the accepted one: they are rejected, while the training exists."""
        for change in ({"sha256": digest(file + b"more")}, {"num_examples": 1 if spec.num_examples > 1 else 2}):
            other = _changed(spec, upload_id="", offset=0, **change)
            answer = self._ask(
                user,
                self._client.rounds.SubmitUpdate,
                lambda other=other: _messages(other, file),
                *CLOSED,
                "UPDATE_EXISTS",
            )
            if answer:
                self._record("unexpected", reason=f"a second update was accepted, with another {set(change)}")

    def _download(self, user: User, method: Any, kind: Any, started: Any) -> None:
        """Downloads what a round has for the user: an assigned model, or a control variate."""
        request = kind(training_id=self._training_id, round=started.round)

        def read(sent: Any, **options: Any) -> bytes:
            messages = list(method(sent, **options))
            file = b"".join(message.chunk for message in messages)
            # In its first round, there is no control variate.
            if digest(file) != messages[0].info.sha256 and (file or messages[0].info.sha256):
                self._record("unexpected", reason="a download has other bytes than its digest says")
            return file

        self._ask(user, read, request, *CLOSED)

    def _ask(self, user: User, method: Any, request: Any, *expected: str) -> Any:
        return self._client.call(user, method, request, *expected, training_id=self._training_id)

    def _record(self, kind: str, **facts: Any) -> None:
        self._client.history.add(kind, training_id=self._training_id, **facts)


def _draw_paths(draw: random.Random) -> Iterator[tuple[int, float]]:
    while True:
        yield from draw.choices(PATHS, OFTEN)


def _changed(spec: Any, **changes: Any) -> Any:
    """A copy of the description of an update, with other fields."""
    other = round_pb2.UpdateSpec()
    other.CopyFrom(spec)
    for name, value in changes.items():
        setattr(other, name, value)
    return other


def _messages(spec: Any, data: bytes, pause: float = 0.0) -> Iterator[Any]:
    """An update in two chunks, with a pause in seconds between them."""
    middle = len(data) // 2
    yield round_pb2.SubmitUpdateRequest(spec=spec)
    if middle:
        yield round_pb2.SubmitUpdateRequest(chunk=data[:middle])
        time.sleep(pause)
    if data:
        yield round_pb2.SubmitUpdateRequest(chunk=data[middle:])
