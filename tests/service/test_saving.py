"""Bytes that need not move: what the caller has is not sent, and equal files are kept once."""

from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import load

import fedround_client as fr
from calls import Person, digest, download, fails_with, model_file, new_number, until, whole
from fedround.v1 import model_pb2
from servers import Server
from service.uploads import is_stored, storing


def ask(person: Person, model_id: str, **request: object) -> list[model_pb2.DownloadModelResponse]:
    return list(person.models.DownloadModel(model_pb2.DownloadModelRequest(model_id=model_id, **request)))


def test_a_file_that_the_caller_has_is_not_sent(actor: Person, data: bytes) -> None:
    upload = storing(actor)
    stored = upload.send(upload.spec(data), *upload.chunks(data)).model
    for have in (digest(data), digest(data).upper()):
        for offset in (0, 10):
            (answer,) = ask(actor, stored.model_id, have_sha256=have, offset=offset)
            assert answer.unchanged
            assert (answer.info.sha256, answer.info.size_bytes, answer.chunk) == (digest(data), len(data), b"")
    first, *rest = ask(actor, stored.model_id, have_sha256=digest(b"another"))
    assert not first.unchanged
    assert whole(iter([first, *rest]))[1] == data


def test_what_the_caller_claims_to_have_shows_nothing_of_others(
    actor: Person, person: Callable[..., Person], data: bytes
) -> None:
    upload = storing(actor)
    stored = upload.send(upload.spec(data), *upload.chunks(data)).model
    with fails_with("NOT_FOUND", "MODEL_NOT_FOUND", stored.model_id):
        ask(person("ACTOR"), stored.model_id, have_sha256=digest(data))
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "have_sha256: is not a SHA-256"):
        ask(actor, stored.model_id, have_sha256="yes")


def test_equal_updates_are_one_file_and_count_each(server: Server, actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=[client.user_id for client in clients], target_num_updates=2)
    actor.start(made.training_id)
    data = model_file(1, count=np.array(new_number()))
    receipts = [client.submit(made.training_id, data, num_examples=1) for client in clients[:2]]
    assert receipts[0].update_id != receipts[1].update_id
    clients[2].submit(made.training_id, model_file(4), num_examples=2)
    until(lambda: actor.get(made.training_id).round == 1)
    after = load(download(actor, made.model_id, version=1)[1])
    np.testing.assert_array_equal(after["weight"], np.full((2, 3), 5 / 2, np.float32))
    assert is_stored(server, data)


@pytest.mark.timeout(120)
def test_an_update_that_is_here_is_not_sent_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    weights = {"w": np.zeros(10_000_000, np.float32)}
    with (
        Server(tmp_path_factory.mktemp("saving") / "data") as server,
        fr.connect(server.address, server.admin_token) as actor,
    ):
        users = [actor.create_user(f"client {number}") for number in range(2)]
        training = actor.create_training(
            weights, name="t", target_num_updates=1, client_ids=[user.user_id for user, _ in users]
        )
        actor.start_training(training.training_id)
        sent: list[list[int]] = [[], []]
        with fr.connect(server.address, users[0][1]) as client:
            receipts = [
                client.submit_update(
                    training.training_id,
                    0,
                    weights,
                    1,
                    progress=lambda done, _, reported=reported: reported.append(done),
                )
                for reported in sent
            ]
    assert receipts[0] == receipts[1]
    assert sent[0][-1] > len(weights["w"]) * 4
    # What was on its way when the receipt came, and no more.
    assert max(sent[1], default=0) < sent[0][-1] / 2
