"""How many bytes users may store, and how many trainings they may have open."""

from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
from safetensors.numpy import save

from calls import Person, fails_with, new_number
from fedround.v1 import model_pb2
from servers import Server
from service.uploads import Upload, creating, storing, submitting

LIMITS = {"--max-stored-bytes-per-user": 2_500, "--max-stored-bytes": 20_000, "--max-open-trainings": 4}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = tuple(str(word) for option in LIMITS.items() for word in option)
    with Server(tmp_path_factory.mktemp("quotas") / "data", options=options) as running:
        yield running


@pytest.fixture(scope="module")
def admin(server: Server) -> Iterator[Person]:
    with grpc.insecure_channel(server.address) as channel:
        yield Person(channel, server.admin_token)


def file() -> bytes:
    """A file of 1 kB that no other test has sent: two fit into a user's quota."""
    return save({"w": np.full(125, new_number(), np.float64)})


def store(person: Person) -> model_pb2.Model:
    upload, data = storing(person), file()
    return upload.send(upload.spec(data), *upload.chunks(data)).model


@pytest.mark.parametrize("make", [creating, storing])
def test_a_user_stores_so_many_bytes(actor: Person, make: Callable[[Person], Upload]) -> None:
    upload, data = make(actor), file()
    models = [store(actor) for _ in range(2)]
    before = upload.look()
    undeclared = upload.request(spec=upload.needs)
    for head, chunks in ((upload.spec(data), []), (undeclared, list(upload.chunks(data)))):
        with fails_with("RESOURCE_EXHAUSTED", "QUOTA", "your files would have", "you may have 2500", "first") as error:
            upload.send(head, *chunks)
        assert error.details.metadata == {"limit": "max_stored_bytes_per_user"}
        assert "QuotaFailure" in error.details.details
        assert "RetryInfo" not in error.details.details
        assert upload.look() == before
    actor.models.RemoveModel(model_pb2.RemoveModelRequest(model_id=models[0].model_id))
    upload.send(upload.spec(data), *upload.chunks(data))


def test_a_running_round_goes_on_when_its_actor_has_no_room(actor: Person, person: Callable[..., Person]) -> None:
    upload = submitting(actor, person("CLIENT"), file())
    store(actor)
    with fails_with("RESOURCE_EXHAUSTED", "QUOTA", "your files would have"):
        store(actor)
    data = file()
    assert upload.send(upload.spec(data), *upload.chunks(data)).receipt.round == 0
    # The update counts.
    with fails_with("RESOURCE_EXHAUSTED", "QUOTA", "your files would have"):
        actor.create(b"", model_id=actor.models.GetModels(model_pb2.GetModelsRequest()).models[0].model_id)


def test_all_actors_have_so_many_trainings_open(person: Callable[..., Person]) -> None:
    made = []
    with fails_with("RESOURCE_EXHAUSTED", "QUOTA", "the server has 4 trainings that have not ended") as error:
        while True:
            actor = person("ACTOR")
            made.append((actor, actor.create().training_id))
    assert error.details.metadata == {"limit": "max_open_trainings"}
    assert len(made) <= 4


def test_all_files_have_so_many_bytes_and_running_rounds_go_on(actor: Person, person: Callable[..., Person]) -> None:
    store(actor)
    with fails_with("RESOURCE_EXHAUSTED", "QUOTA", "the server would have files of", "it takes 20000") as error:
        while True:
            store(person("ACTOR"))
    assert error.details.metadata == {"limit": "max_stored_bytes"}
