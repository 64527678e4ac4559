"""The three RPCs that take a file, called alike."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from calls import TIMEOUT, Person, digest, until
from fedround.v1 import model_pb2, round_pb2, training_pb2
from servers import Server

CHUNK = 1 << 20


@dataclass(frozen=True)
class Upload:
    """One of the RPCs, and who may call it.

    Attributes:
        prefix: What the names of the fields that declare the file begin with.
        needs: What the spec must say besides.
        look: Returns all that the call could change.
    """

    person: Person
    method: str
    request: Any
    prefix: str
    needs: dict[str, Any]
    look: Callable[[], Any]

    def spec(self, data: bytes, **changed: Any) -> Any:
        """The first message: a spec that declares the file."""
        declared = {f"{self.prefix}sha256": digest(data), f"{self.prefix}size_bytes": len(data)}
        return self.request(spec={**self.needs, **declared, **changed})

    def resumable(self, data: bytes, upload_id: str, offset: int = 0) -> Any:
        """The first message of a try of a resumable upload."""
        head = self.spec(data)
        # CreateTraining has them beside its spec, which the training keeps.
        target = head if hasattr(head, "upload_id") else head.spec
        target.upload_id, target.offset = upload_id, offset
        return head

    def chunks(self, data: bytes, size: int = CHUNK) -> Iterator[Any]:
        for start in range(0, len(data), size):
            yield self.request(chunk=data[start : start + size])

    def send(self, *messages: Any) -> Any:
        return getattr(self._stub, self.method)(iter(messages), timeout=TIMEOUT)

    def begin(self, messages: Iterator[Any]) -> Any:
        """Starts a call, and returns while it is in progress."""
        return getattr(self._stub, self.method).future(messages, timeout=TIMEOUT)

    def through(self, person: Person) -> "Upload":
        """The same call over another connection."""
        return Upload(person, self.method, self.request, self.prefix, self.needs, self.look)

    @property
    def _stub(self) -> Any:
        return {
            training_pb2.CreateTrainingRequest: self.person.trainings,
            model_pb2.UploadModelRequest: self.person.models,
            round_pb2.SubmitUpdateRequest: self.person.rounds,
        }[self.request]


def creating(actor: Person) -> Upload:
    needs = {"name": "t", "target_num_updates": 1}
    return Upload(
        actor, "CreateTraining", training_pb2.CreateTrainingRequest, "model_", needs, lambda: belongings(actor)
    )


def storing(actor: Person) -> Upload:
    return Upload(actor, "UploadModel", model_pb2.UploadModelRequest, "", {"name": "m"}, lambda: belongings(actor))


def submitting(actor: Person, client: Person, model: bytes) -> Upload:
    """To an open round, which the client's update alone does not close."""
    upload = storing(actor)
    stored = upload.send(upload.spec(model), *upload.chunks(model)).model
    made = actor.create(b"", model_id=stored.model_id, client_ids=[client.user_id, actor.user_id])
    actor.start(made.training_id)
    needs = {"training_id": made.training_id, "round": 0, "num_examples": 1}
    return Upload(client, "SubmitUpdate", round_pb2.SubmitUpdateRequest, "", needs, lambda: belongings(actor))


def belongings(actor: Person) -> tuple[list[Any], list[Any]]:
    """The actor's trainings and models."""
    trainings = actor.trainings.GetTrainings(training_pb2.GetTrainingsRequest()).trainings
    return list(trainings), list(actor.models.GetModels(model_pb2.GetModelsRequest()).models)


class Halted:
    """An upload that stops in the middle, until the test lets it go on."""

    def __init__(self, server: Server, upload: Upload, data: bytes, first: Any = None) -> None:
        self._go_on = threading.Event()

        def under_way() -> int:
            # Those that can be resumed are in the folder of their user.
            return len([*server.data_dir.glob("tmp/*"), *server.data_dir.glob("uploads/*/*")])

        before = under_way()

        def messages() -> Iterator[Any]:
            yield first or upload.spec(data)
            half, *rest = upload.chunks(data, len(data) // 2)
            yield half
            self._go_on.wait()
            yield from rest

        self.call = upload.begin(messages())
        until(lambda: under_way() > before)

    def __enter__(self) -> "Halted":
        return self

    def __exit__(self, *_: object) -> None:
        self.call.cancel()
        self._go_on.set()

    def finish(self) -> Any:
        self._go_on.set()
        return self.call.result()


def is_stored(server: Server, data: bytes) -> bool:
    return (server.data_dir / "objects" / digest(data)[:2] / digest(data)).exists()


def committed(upload: Upload, upload_id: str) -> int:
    """How much of a resumable upload is here."""
    return upload.person.rounds.GetUpload(round_pb2.GetUploadRequest(upload_id=upload_id)).committed_size
