"""Daisy chaining and SWAG rounds by raw calls: who is assigned what, and which moments are rejected."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from calls import MODEL, Person, digest, download, fails_with, kinds, model_file, new_id, whole
from fedround.v1 import event_pb2, model_pb2, round_pb2

FED_DC = {"fed_dc": {"aggregation_period": 3, "seed": 5}}
FLOATING = [name for name, tensor in MODEL.items() if tensor.dtype.kind == "f"]


def begin(actor: Person, clients: list[Person], **spec: Any) -> Any:
    """Starts a training of these clients."""
    return actor.start(actor.create(client_ids=[client.user_id for client in clients], **spec).training_id)


def await_round(actor: Person, training_id: str, number: int) -> Any:
    """Waits until a round is open; returns what the event says."""
    events = actor.subscribe(training_id, resume_after_sequence={training_id: 0})
    opened = (event.round_started for event in events if event.HasField("round_started"))
    started = next(one for one in opened if one.round == number)
    events.cancel()
    return started


def download_assigned(person: Person, training_id: str, number: int = 1, offset: int = 0) -> tuple[Any, bytes]:
    request = round_pb2.DownloadAssignedModelRequest(training_id=training_id, round=number, offset=offset)
    return whole(person.rounds.DownloadAssignedModel(request))


class TestDeals:
    @pytest.fixture
    def training(self, actor: Person, clients: list[Person]) -> Any:
        """A chain whose first round two of its three participants took part in, and whose second one is open."""
        training = begin(actor, clients, aggregation=FED_DC, round_policy={"min_updates": 2})
        for number, client in enumerate(clients[:2]):
            client.submit(training.training_id, model_file(number + 1))
        assert await_round(actor, training.training_id, 1).assigned
        return training

    def test_each_member_is_assigned_what_another_one_sent(self, actor: Person, clients: list[Person]) -> None:
        training = begin(actor, clients, aggregation=FED_DC)
        training_id = training.training_id
        assert not await_round(actor, training_id, 0).assigned
        sent = {client.user_id: model_file(number + 1) for number, client in enumerate(clients)}
        for number in (0, 1):
            for client in clients:
                client.submit(training_id, sent[client.user_id], number)
            assert await_round(actor, training_id, number + 1).assigned
            got = {}
            for client in clients:
                info, data = download_assigned(client, training_id, number + 1)
                assert (info.model_id, info.version) == (training.model_id, 0)
                assert (info.sha256, info.size_bytes) == (digest(data), len(data))
                assert download_assigned(client, training_id, number + 1, 7)[1] == data[7:]
                got[client.user_id] = data
            assert sorted(got.values()) == sorted(sent.values())
            assert all(got[user_id] != data for user_id, data in sent.items())

    def test_users_without_an_assignment(
        self, actor: Person, clients: list[Person], person: Callable[..., Person], training: Any
    ) -> None:
        training_id = training.training_id
        assert download_assigned(clients[0], training_id)[1] == model_file(2)
        assert download_assigned(clients[1], training_id)[1] == model_file(1)
        with fails_with("PERMISSION_DENIED", "NOT_IN_COHORT", "no model was assigned to you in this round"):
            download_assigned(clients[2], training_id)
        with fails_with("PERMISSION_DENIED", "NOT_IN_COHORT", "no model was assigned to you in this round"):
            download_assigned(clients[0], training_id, 0)
        with fails_with("NOT_FOUND", "ROUND_NOT_FOUND", f"the training {training_id} has no such round"):
            download_assigned(clients[0], training_id, 2)
        for other in (actor, person("CLIENT")):
            with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND", training_id):
                download_assigned(other, training_id)
        with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND"):
            download_assigned(clients[0], new_id())
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "is required") as call:
            download_assigned(clients[0], "")
        assert list(call.details.fields) == ["training_id"]

    def test_an_assigned_model_is_read_from_anywhere_up_to_its_end(self, clients: list[Person], training: Any) -> None:
        data = model_file(2)
        for offset in (0, 1, len(data) - 1, len(data)):
            assert download_assigned(clients[0], training.training_id, 1, offset)[1] == data[offset:]
        with fails_with("OUT_OF_RANGE", "OFFSET_OUT_OF_RANGE", f"the file ends at {len(data)}"):
            download_assigned(clients[0], training.training_id, 1, len(data) + 1)


def moments(rank: int = 2, **changed: np.ndarray) -> dict[str, np.ndarray]:
    """What a participant sends that stayed at one point."""
    found: dict[str, np.ndarray] = {}
    for name in FLOATING:
        shape = MODEL[name].shape
        found |= {f"mean/{name}": np.full(shape, 2.0), f"second/{name}": np.full(shape, 4.0)}
        found |= {f"deviation/{column}/{name}": np.zeros(shape, np.float32) for column in range(rank)}
    return found | changed


class TestSwag:
    @pytest.fixture
    def training(self, actor: Person, clients: list[Person]) -> Any:
        """A training whose SWAG round is open."""
        training = begin(actor, clients[:1], uncertainty={"swag": {"rank": 2}})
        clients[0].submit(training.training_id, model_file(1))
        started = await_round(actor, training.training_id, 1)
        assert (started.kind, started.swag.rank) == (event_pb2.ROUND_KIND_SWAG, 2)
        return training

    @pytest.mark.parametrize(
        ("tensors", "words"),
        [
            ({k: v for k, v in moments().items() if k != "second/bias"}, ("lacks tensors", "'second/bias'")),
            (moments(rank=1), ("lacks tensors", "'deviation/1/bias', 'deviation/1/weight'")),
            (moments(rank=3), ("does not ask for", "'deviation/2/bias', 'deviation/2/weight'")),
            (
                moments(**{"mean/weight": np.zeros((2, 3), np.float32)}),
                ("'mean/weight' is F32[2, 3]", "for F64[2, 3]"),
            ),
            (moments(**{"deviation/0/bias": np.zeros(3)}), ("'deviation/0/bias' is F64[3]", "F32[3]")),
            (moments(**{"mean/weight": np.zeros((3, 2))}), ("'mean/weight' is F64[3, 2]", "F64[2, 3]")),
            (moments(**{"mean/count": np.zeros(())}), ("does not ask for", "'mean/count'")),
            (load(model_file(2)), ("lacks tensors", "'deviation/0/bias'", "'mean/bias'")),
        ],
        ids=["missing", "rank 1", "rank 3", "F32", "F64", "shape", "integers", "plain model"],
    )
    def test_moments_that_do_not_fit_are_rejected(
        self, actor: Person, clients: list[Person], training: Any, tensors: dict[str, np.ndarray], words: tuple[str]
    ) -> None:
        before = actor.get(training.training_id)
        reason = "TENSORS_MISMATCH" if tensors.keys() != moments(rank=2).keys() else "UPDATE_MISMATCH"
        with fails_with("INVALID_ARGUMENT", reason, *words):
            clients[0].submit(training.training_id, save(tensors), 1)
        assert actor.get(training.training_id) == before
        events = actor.subscribe(training.training_id)
        clients[0].submit(training.training_id, save(moments()), 1)
        assert kinds(list(events))[-1] == "training_finished"

    def test_moments_become_the_posterior_of_the_version(
        self, actor: Person, clients: list[Person], training: Any
    ) -> None:
        events = actor.subscribe(training.training_id)
        clients[0].submit(training.training_id, save(moments()), 1)
        assert list(events)[-1].training_finished.model_version == 1
        request = model_pb2.GetModelVersionsRequest(model_id=training.model_id)
        latest, first = actor.models.GetModelVersions(request).versions
        assert (latest.posterior.rank, first.HasField("posterior")) == (2, False)
        for reader in (actor, clients[0]):
            info, data = download(reader, training.model_id, tag="last", part=model_pb2.MODEL_PART_POSTERIOR)
            assert (info.version, info.sha256) == (1, latest.posterior.sha256)
            assert digest(data) == info.sha256
        found = load(data)
        assert found.keys() == moments().keys()
        assert all(np.array_equal(found[name], tensor) for name, tensor in moments().items())
        with fails_with("NOT_FOUND", "MODEL_NOT_FOUND", "version 0 with a SWAG posterior"):
            download(actor, training.model_id, version=0, part=model_pb2.MODEL_PART_POSTERIOR)
