"""Trainings that update a part of the model, by raw calls: what is accepted, stored, sent, and survives."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import load, save

from calls import MODEL, Person, digest, download, fails_with, kinds, model_file, new_id, new_number
from damage import flip, stored
from fedround.v1 import model_pb2, training_pb2
from servers import Server

DELTA, BASE = model_pb2.MODEL_PART_DELTA, model_pb2.MODEL_PART_BASE


def part(value: float, *names: str, **changed: np.ndarray) -> bytes:
    """An update with some tensors of the model."""
    chosen = {name: np.full_like(MODEL[name], value) for name in names or ("weight",)}
    return save({**chosen, **changed})


def begin(actor: Person, clients: list[Person], data: bytes | None = None, **spec: Any) -> training_pb2.Training:
    """Starts a training of a part of the model."""
    selection = spec.pop("tensors", {"trainable": ["wei*"]})
    ids = [client.user_id for client in clients]
    made = actor.create(model_file(5) if data is None else data, client_ids=ids, tensors=selection, **spec)
    return actor.start(made.training_id)


def finish_round(actor: Person, client: Person, training: training_pb2.Training, number: int, data: bytes) -> None:
    """Submits the only update of a round, and waits for what it makes."""
    events = actor.subscribe(training.training_id)
    client.submit(training.training_id, data, number)
    closed = (event for event in events if event.HasField("round_closed"))
    assert any(event.round_closed.round == number for event in closed)
    events.cancel()


def test_the_versions_inherit_what_updates_do_not_have(actor: Person, clients: list[Person]) -> None:
    first = model_file(5)
    training = begin(actor, clients[:2], first, target_num_updates=2)
    assert training.spec.tensors == training_pb2.TensorSelection(trainable=["wei*"])
    events = actor.subscribe(training.training_id)
    started = next(event.round_started for event in events if event.HasField("round_started"))
    assert (list(started.trainable), list(started.private), started.model.base_sha256) == (["wei*"], [], "")
    for number in (0, 1):
        for client, value in zip(clients[:2], (1 + number, 3 + number), strict=True):
            client.submit(training.training_id, part(value), number)
        closed = next(event.round_closed for event in events if event.HasField("round_closed"))
        assert closed.model_version == number + 1
    assert kinds(list(events))[-1] == "training_finished"
    info, whole = download(actor, training.model_id)
    assert (info.sha256, info.size_bytes) == (digest(whole), len(whole))
    found = load(whole)
    for name, tensor in MODEL.items():
        np.testing.assert_array_equal(found[name], np.full_like(tensor, 3 if name == "weight" else 5))
    assert digest(download(actor, training.model_id, part=BASE)[1]) == digest(first)
    delta_info, delta = download(actor, training.model_id, part=DELTA)
    assert {name: tensor.max() for name, tensor in load(delta).items()} == {"weight": 3}
    assert delta_info.version == 2
    versions = actor.models.GetModelVersions(model_pb2.GetModelVersionsRequest(model_id=training.model_id)).versions
    assert [(one.sha256, one.base_sha256, one.delta_sha256, one.delta_size_bytes) for one in versions] == [
        (info.sha256, digest(first), delta_info.sha256, len(delta)),
        (versions[1].sha256, digest(first), versions[1].delta_sha256, len(delta)),
        (digest(first), "", "", 0),
    ]


def test_a_download_resumes_anywhere_and_selects_tensors(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:1], target_num_updates=2)
    finish_round(actor, clients[0], training, 0, part(7))
    for request in ({}, {"part": DELTA}, {"tensors": ["bi*", "weight"]}):
        info, whole = download(clients[0], training.model_id, version=1, **request)
        assert (info.sha256, info.size_bytes) == (digest(whole), len(whole))
        for offset in (1, len(whole) // 2, len(whole) - 1, len(whole)):
            again, rest = download(clients[0], training.model_id, version=1, offset=offset, **request)
            assert (again, rest) == (info, whole[offset:])
        known = model_pb2.DownloadModelRequest(
            model_id=training.model_id, version=1, have_sha256=info.sha256, **request
        )
        assert [message.unchanged for message in actor.models.DownloadModel(known)] == [True]
        with fails_with("OUT_OF_RANGE", "OFFSET_OUT_OF_RANGE", f"the file ends at {len(whole)}"):
            download(actor, training.model_id, version=1, offset=len(whole) + 1, **request)
    found = load(download(actor, training.model_id, tensors=["bi*", "weight"])[1])
    assert {name: tensor.max() for name, tensor in found.items()} == {"bias": 5, "weight": 7}
    # A version that is stored whole can be read in parts, too.
    assert list(load(download(actor, training.model_id, version=0, tensors=["count"])[1])) == ["count"]


@pytest.mark.parametrize(
    ("request_", "code", "reason", "words"),
    [
        ({"tensors": ["nothing*"]}, "INVALID_ARGUMENT", "FIELD_INVALID", "no tensor of version 1 of the model"),
        ({"tensors": ["*"], "part": DELTA}, "INVALID_ARGUMENT", "FIELD_INVALID", "goes with MODEL_PART_MODEL only"),
        ({"tensors": ["x" * 513]}, "INVALID_ARGUMENT", "FIELD_INVALID", "at most 512 are allowed"),
        ({"tensors": ["*"] * 101}, "INVALID_ARGUMENT", "FIELD_INVALID", "at most 100"),
        ({"part": DELTA, "version": 0}, "NOT_FOUND", "MODEL_NOT_FOUND", "stored whole: download the model"),
        ({"part": BASE, "version": 0}, "NOT_FOUND", "MODEL_NOT_FOUND", "with a base"),
    ],
)
def test_a_download_of_what_there_is_not(
    actor: Person, clients: list[Person], request_: dict[str, Any], code: str, reason: str, words: str
) -> None:
    training = begin(actor, clients[:1], target_num_updates=2)
    finish_round(actor, clients[0], training, 0, part(7))
    with fails_with(code, reason, words):
        download(actor, training.model_id, **{"version": 1, **request_})


def test_updates_with_other_tensors_are_rejected(actor: Person, clients: list[Person]) -> None:
    selection = {"trainable": ["weight"], "private": ["bias"]}
    training = begin(actor, clients[:1], tensors=selection)
    for data, words in (
        (part(1, "count"), "lacks tensors that the round asks for: 'weight'; and it has tensors"),
        (part(1, "weight", "count"), "has tensors that the round does not ask for: 'count'"),
        (part(1, "weight", "bias"), "private to each participant (spec.tensors.private): 'bias': leave them out"),
        (model_file(1), "private to each participant (spec.tensors.private): 'bias': leave them out"),
        (save({"module.weight": MODEL["weight"]}), "begin with 'module.'"),
    ):
        with fails_with("INVALID_ARGUMENT", "TENSORS_MISMATCH", words):
            clients[0].submit(training.training_id, data)
    with fails_with("INVALID_ARGUMENT", "UPDATE_MISMATCH", "'weight' is F32[3, 2]"):
        clients[0].submit(training.training_id, save({"weight": np.zeros((3, 2), np.float32)}))
    assert actor.get(training.training_id).updates_arrived == 0
    clients[0].submit(training.training_id, part(1))


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"tensors": {"trainable": ["nothing"]}}, "spec.tensors.trainable", "no tensor of the model matches"),
        ({"tensors": {"private": ["nothing"]}}, "spec.tensors.private", "no tensor of the model matches"),
        ({"tensors": {"trainable": ["b*"], "private": ["bias"]}}, "spec.tensors.private", "both match 'bias'"),
        ({"tensors": {"private": ["*"]}}, "spec.tensors.private", "leave some to be trained together"),
        ({"tensors": {"trainable": [""]}}, "spec.tensors.trainable", "is required: 1 to 512 characters"),
        ({"tensors": {"trainable": ["*"] * 101}}, "spec.tensors.trainable", "at most 100"),
        ({"tensors": {"external_base_sha256": "ab"}}, "spec.tensors.external_base_sha256", "64 hexadecimal digits"),
        ({"tensors": {"trainable": ["*"]}, "aggregation": {"fed_dc": {}}}, "spec.tensors", "does not go with fed_dc"),
        ({"tensors": {"private": ["bias"]}, "uncertainty": {"swag": {}}}, "spec.tensors", "does not go with swag"),
    ],
)
@pytest.mark.parametrize("is_stored", [False, True])
def test_an_impossible_selection_is_rejected(
    actor: Person, spec: dict[str, Any], field: str, words: str, is_stored: bool
) -> None:
    data: bytes | None = None
    if is_stored:
        uploaded = model_pb2.UploadModelRequest(spec={"name": "m"}, chunk=model_file())
        spec = {**spec, "model_id": actor.models.UploadModel(iter([uploaded])).model.model_id}
        data = b""
    before = actor.models.GetModels(model_pb2.GetModelsRequest()).models
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", words) as call:
        actor.create(data, **spec)
    assert list(call.details.fields) == [field]
    assert actor.models.GetModels(model_pb2.GetModelsRequest()).models == before
    assert not actor.trainings.GetTrainings(training_pb2.GetTrainingsRequest()).trainings


def test_bounds_and_half_precision_are_those_of_the_part(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:2], update_precision="UPDATE_PRECISION_FLOAT16", max_update_norm=3)
    # Six elements; the other tensors do not count.
    with fails_with("INVALID_ARGUMENT", "UPDATE_NORM", "4.89898 away"):
        clients[0].submit(training.training_id, part(7))
    clients[0].submit(training.training_id, save({"weight": np.full((2, 3), 1, np.float16)}))
    clients[1].submit(training.training_id, part(4))
    events = list(actor.subscribe(training.training_id))
    assert kinds(events)[-1] == "training_finished"
    assert load(download(actor, training.model_id)[1])["weight"].tolist() == [[5] * 3] * 2


def test_buffers_that_are_not_finite_stay_in_the_base(actor: Person, clients: list[Person]) -> None:
    mask = {"bias": np.array([0, -np.inf, np.nan])}
    training = begin(actor, clients[:1], model_file(**mask), allow_non_finite_buffers=True)
    with fails_with("INVALID_ARGUMENT", "UPDATE_NOT_FINITE", "where the model has none"):
        clients[0].submit(training.training_id, part(np.nan))
    clients[0].submit(training.training_id, part(1))
    assert kinds(list(actor.subscribe(training.training_id)))[-1] == "training_finished"
    np.testing.assert_array_equal(load(download(actor, training.model_id)[1])["bias"], mask["bias"])


def test_a_training_goes_on_from_a_version_with_a_delta(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:1])
    clients[0].submit(training.training_id, part(7))
    assert kinds(list(actor.subscribe(training.training_id)))[-1] == "training_finished"
    for selection, update, expected in (
        ({"trainable": ["bias"]}, part(9, "bias"), {"weight": 7, "bias": 9, "count": 5}),
        ({}, model_file(2), {"weight": 2, "bias": 2, "count": 2}),
    ):
        spec = {"model_id": training.model_id, "client_ids": [clients[0].user_id], "tensors": selection}
        again = actor.start(actor.create(b"", **spec).training_id)
        assert {name: tensor.max() for name, tensor in load(download(clients[0], again.model_id)[1]).items()} == {
            "weight": 7,
            "bias": 5,
            "count": 5,
        }
        clients[0].submit(again.training_id, update)
        assert kinds(list(actor.subscribe(again.training_id)))[-1] == "training_finished"
        info, whole = download(actor, again.model_id)
        assert info.sha256 == digest(whole)
        assert {name: tensor.max() for name, tensor in load(whole).items()} == expected


@pytest.fixture
def own_server(tmp_path: Path) -> Any:
    with Server(tmp_path / "data") as running:
        yield running


def people(server: Server) -> tuple[Person, Person]:
    with grpc.insecure_channel(server.address) as channel:
        admin = Person(channel, server.admin_token)
        return admin.make(server.address, "ACTOR"), admin.make(server.address, "CLIENT")


@pytest.mark.parametrize("end", [Server.stop, Server.kill])
def test_versions_and_rounds_survive_a_restart(own_server: Server, end: Callable[[Server], object]) -> None:
    actor, client = people(own_server)
    training = begin(actor, [client], model_file(new_number()), target_num_updates=3)
    finish_round(actor, client, training, 0, part(1))
    before = download(actor, training.model_id)
    end(own_server)
    own_server.start()
    assert download(actor, training.model_id) == before
    finish_round(actor, client, training, 1, part(2))
    end(own_server)
    own_server.start()
    client.submit(training.training_id, part(3), 2)
    assert kinds(list(actor.subscribe(training.training_id)))[-1] == "training_finished"
    info, whole = download(actor, training.model_id)
    assert (info.sha256, load(whole)["weight"].max()) == (digest(whole), 3)
    # The base was written once, and each version takes no more than its delta.
    sizes = {path.name: path.stat().st_size for path in (own_server.data_dir / "objects").rglob("*") if path.is_file()}
    versions = actor.models.GetModelVersions(model_pb2.GetModelVersionsRequest(model_id=training.model_id)).versions
    named = {one.delta_sha256 or one.sha256 for one in versions}
    updates = {digest(part(value)) for value in (1, 2, 3)}
    assert sizes.keys() == named | updates
    for _ in (actor, client):
        _.channel.close()


@pytest.mark.parametrize("which", ["base", "delta"])
def test_a_damaged_part_is_named(own_server: Server, which: str) -> None:
    actor, client = people(own_server)
    large = {"big": np.full(250_000, new_number() % 1000, np.float32)}
    training = begin(actor, [client], model_file(**large), target_num_updates=2)
    finish_round(actor, client, training, 0, part(1))
    info = download(actor, training.model_id)[0]
    version = actor.models.GetModelVersions(model_pb2.GetModelVersionsRequest(model_id=training.model_id)).versions[0]
    sha256 = version.base_sha256 if which == "base" else version.delta_sha256
    path = stored(own_server.data_dir, sha256)
    intact = path.read_bytes()
    flip(path, -1 if which == "delta" else 800_000)
    with fails_with("DATA_LOSS", "MODEL_DAMAGED", "version 1 of the model"):
        download(actor, training.model_id)
    other = {"base": DELTA, "delta": BASE}[which]
    assert download(actor, training.model_id, part=other)[1]
    path.write_bytes(intact)
    again, whole = download(actor, training.model_id)
    assert (again.sha256, hashlib.sha256(whole).hexdigest()) == (info.sha256, info.sha256)
    for person in (actor, client):
        person.channel.close()


def test_an_external_base_is_only_named(actor: Person, clients: list[Person]) -> None:
    sha256 = digest(new_id().encode())
    training = begin(actor, clients[:1], tensors={"external_base_sha256": sha256.upper(), "private": ["own.*"]})
    started = next(e.round_started for e in clients[0].subscribe(training.training_id) if e.HasField("round_started"))
    assert (started.external_base_sha256, list(started.private)) == (sha256, ["own.*"])
    clients[0].submit(training.training_id, model_file(1))
    assert kinds(list(actor.subscribe(training.training_id)))[-1] == "training_finished"
    assert load(download(actor, training.model_id)[1])["weight"].max() == 1
