"""Files of calls that are refused, or that lose a race, don't stay on the disk, and count against their sender."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import save

from calls import Person, new_id, new_number, read_error, until
from chaos.facts import load
from fedround.v1 import training_pb2
from servers import Server
from service.uploads import Upload, creating, storing, submitting

MANY = 12
# Each upload counts as 1 MiB at least.
AT_ONCE = 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = {
        "max-model-bytes": 1 << 20,
        "max-unfinished-bytes-per-user": AT_ONCE << 20,
        "max-open-trainings-per-user": 3,
    }
    options = tuple(word for name, limit in limits.items() for word in (f"--{name}", str(limit)))
    with Server(tmp_path_factory.mktemp("refused") / "data", options=options) as running:
        yield running


@pytest.fixture(scope="module")
def admin(server: Server) -> Iterator[Person]:
    with grpc.insecure_channel(server.address) as channel:
        yield Person(channel, server.admin_token)


def file() -> bytes:
    """A file of some chunks, unlike all others."""
    return save({"w": np.full(60_000, new_number(), np.float64)})


def stored(server: Server, *folders: str) -> set[str]:
    return {path.name for folder in folders for path in (server.data_dir / folder).rglob("*") if path.is_file()}


def referred(server: Server) -> set[str]:
    """The digests of all files that the database refers to."""
    facts = load("", server.data_dir)
    tables = ("model_version", "artifact", "round_update", "assignment")
    return {row["sha256"] for table in tables for row in facts[table] if row["sha256"]}


def assert_no_file_is_left(server: Server) -> None:
    # A call is answered before its handler has ended, and a cancelled one goes on for a moment.
    until(lambda: not stored(server, "tmp", "uploads"))
    until(lambda: stored(server, "objects") == referred(server))


class Together:
    """Calls that all have begun before any of them ends."""

    def __init__(self, server: Server, upload: Upload, files: list[bytes], heads: list[Any]) -> None:
        self._go_on = threading.Event()

        def messages(head: Any, data: bytes) -> Iterator[Any]:
            yield head
            *most, last = upload.chunks(data, 100_000)
            yield from most
            self._go_on.wait()
            yield last

        self.calls = [upload.begin(messages(head, data)) for head, data in zip(heads, files, strict=True)]
        until(lambda: len(stored(server, "tmp", "uploads")) + self._ended() == len(files))

    def finish(self) -> list[str]:
        """Returns the reasons of all calls; that of a success is empty."""
        self._go_on.set()
        with ThreadPoolExecutor(len(self.calls)) as pool:
            return sorted(pool.map(reason, self.calls))

    def cancel(self) -> None:
        for call in self.calls:
            call.cancel()
        self._go_on.set()

    def _ended(self) -> int:
        return sum(call.done() for call in self.calls)


def reason(call: Any) -> str:
    try:
        call.result()
    except grpc.RpcError as error:
        return read_error(error).reason
    return ""


@pytest.fixture
def update(actor: Person, person: Callable[..., Person]) -> Upload:
    return submitting(actor, person("CLIENT"), file())


@pytest.fixture(params=[False, True], ids=["at once", "resumable"])
def head(request: pytest.FixtureRequest) -> Callable[[Upload, bytes], Any]:
    """Makes the first message of an upload."""
    return lambda upload, data: upload.resumable(data, new_id()) if request.param else upload.spec(data)


def test_of_different_updates_at_once_only_the_accepted_one_stays(
    server: Server, update: Upload, head: Callable[[Upload, bytes], Any]
) -> None:
    files = [file() for _ in range(MANY)]
    together = Together(server, update, files, [head(update, data) for data in files])
    assert together.finish() == ["", *["UPDATE_EXISTS"] * (MANY - 1)]
    assert_no_file_is_left(server)


def test_the_same_update_at_once_stays(server: Server, update: Upload, head: Callable[[Upload, bytes], Any]) -> None:
    data = file()
    together = Together(server, update, [data] * MANY, [head(update, data) for _ in range(MANY)])
    assert together.finish() == [""] * MANY
    assert_no_file_is_left(server)


def test_updates_that_come_after_the_removal_of_their_sender_leave_nothing(
    server: Server, actor: Person, update: Upload, head: Callable[[Upload, bytes], Any]
) -> None:
    files = [file() for _ in range(MANY)]
    together = Together(server, update, files, [head(update, data) for data in files])
    request = training_pb2.RemoveClientsRequest(
        training_id=update.needs["training_id"], client_ids=[update.person.user_id]
    )
    actor.trainings.RemoveClients(request)
    assert together.finish() == ["NOT_IN_COHORT"] * MANY
    assert_no_file_is_left(server)


def test_what_is_cancelled_leaves_nothing(server: Server, update: Upload) -> None:
    files = [file() for _ in range(MANY)]
    Together(server, update, files, [update.spec(data) for data in files]).cancel()
    assert_no_file_is_left(server)


def test_updates_at_once_count_against_their_sender(server: Server, update: Upload) -> None:
    files = [file() for _ in range(AT_ONCE + 5)]
    first = Together(server, update, files, [update.spec(data) for data in files])
    assert [reason(call) for call in first.calls if call.done()] == ["TOO_MANY_UPLOADS"] * 5
    first.cancel()
    assert_no_file_is_left(server)
    # They count no more.
    second = Together(server, update, files, [update.spec(data) for data in files])
    assert second.finish() == ["", *["TOO_MANY_UPLOADS"] * 5, *["UPDATE_EXISTS"] * (AT_ONCE - 1)]
    assert_no_file_is_left(server)


def test_models_that_their_training_does_not_use_leave_nothing(server: Server, actor: Person) -> None:
    upload, request_id = creating(actor), new_id()
    files = [file() for _ in range(MANY)]
    # All make one training, with the model of one of them.
    together = Together(server, upload, files, [upload.spec(data, request_id=request_id) for data in files])
    assert together.finish() == [""] * MANY
    assert_no_file_is_left(server)
    # There is room for two more.
    together = Together(server, upload, files, [upload.spec(data) for data in files])
    assert together.finish() == ["", "", *["QUOTA"] * (MANY - 2)]
    assert_no_file_is_left(server)


def test_a_model_of_two_users_stays_for_the_one_that_has_it(
    server: Server, actor: Person, person: Callable[..., Person]
) -> None:
    other = person("ACTOR")
    for _ in range(3):
        other.create(file())
    shared, refused, kept = file(), creating(other), storing(actor)
    with pytest.raises(grpc.RpcError):
        refused.send(refused.spec(shared), *refused.chunks(shared))
    kept.send(kept.spec(shared), *kept.chunks(shared))
    with pytest.raises(grpc.RpcError):
        refused.send(refused.spec(shared), *refused.chunks(shared))
    assert_no_file_is_left(server)
