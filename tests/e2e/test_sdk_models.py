"""The model library against a real server: versions, tags, what keeps its file, and starting from any of them."""

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import fedround_client as fr
from e2e.federation import Federation, federation
from fedround.v1 import model_pb2, model_pb2_grpc
from fedround_client.payload import CHUNK
from servers import Server

State = dict[str, Any]
MODEL = {"w": np.zeros(2, np.float32), "steps": np.array(0, np.int64)}


@pytest.fixture
def group(server: Server) -> Iterator[Federation]:
    with federation(server, 1) as made:
        yield made


def plus_one(model: State, round_: fr.Round) -> tuple[State, int]:
    return {**model, "w": model["w"] + np.float32(1)}, 1


def tags(actor: fr.Client, model_id: str) -> dict[int, list[str]]:
    return {version.version: list(version.tags) for version in actor.model_versions(model_id)}


def test_a_model_is_stored_described_listed_and_removed(group: Federation, tmp_path: Path) -> None:
    actor = group.actor
    weights = {"w": np.arange(CHUNK, dtype=np.float32), "b": np.array(1.5)}
    stored = actor.upload_model(weights, name="big", description="more than one chunk", architecture="mlp")
    found = actor.get_model(stored.model_id)
    assert (found.name, found.description, found.architecture, found.version) == (
        "big",
        "more than one chunk",
        "mlp",
        0,
    )
    assert [(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in found.tensors] == [
        ("b", "F64", []),
        ("w", "F32", [CHUNK]),
    ]
    again = actor.upload_model(actor.download_model(stored.model_id, to=tmp_path / "m.safetensors"))
    assert [model.model_id for model in actor.models()] == [again.model_id, stored.model_id]
    assert again.sha256 == stored.sha256
    with group.connect(0) as unrelated:
        assert list(unrelated.models()) == []
        with pytest.raises(fr.ModelNotFound):
            unrelated.get_model(stored.model_id)
        with pytest.raises(fr.ModelNotFound):
            unrelated.download_model(stored.model_id)

    training = actor.create_training(model_id=again.model_id, name="t", target_num_updates=1)
    with pytest.raises(fr.ModelInUse, match=training.training_id):
        actor.remove_model(again.model_id)
    actor.remove_training(training.training_id)
    actor.remove_model(again.model_id)
    assert [model.model_id for model in actor.models()] == [stored.model_id]
    assert np.array_equal(actor.download_model(stored.model_id)["w"], weights["w"])


def test_tags_name_versions(group: Federation) -> None:
    actor = group.actor
    model_id = group.run(lambda number: (plus_one,), MODEL, target_num_updates=3).model_id
    for version, tag in ((0, "pinned"), (1, "pinned"), (1, "paper-1"), (2, "paper-1")):
        assert tag in actor.tag_model(model_id, version, tag).tags
    assert tags(actor, model_id) == {3: ["last"], 2: ["paper-1"], 1: ["pinned"], 0: ["pinned"]}
    assert actor.download_model(model_id, tag="paper-1")["w"].tolist() == [2, 2]
    assert actor.download_model(model_id, tag="pinned")["w"].tolist() == [1, 1]  # the latest of both
    assert list(actor.untag_model(model_id, 2, "paper-1").tags) == []
    assert list(actor.untag_model(model_id, 2, "paper-1").tags) == []
    with pytest.raises(fr.ModelNotFound, match="paper-1"):
        actor.download_model(model_id, tag="paper-1")
    for tag in ("best", "last", "Ä", ""):
        with pytest.raises(fr.FieldInvalid) as raised:
            actor.tag_model(model_id, 0, tag)
        assert list(raised.value.field_violations) == ["tag"]
    with pytest.raises(fr.FieldInvalid):
        actor.download_model(model_id, 1, tag="pinned")
    with pytest.raises(fr.ModelNotFound):
        actor.tag_model(model_id, 4, "pinned")


def test_old_versions_lose_their_files_unless_they_carry_a_tag(group: Federation, tmp_path: Path) -> None:
    actor = group.actor
    scores = {1: 0.5, 2: 0.9}

    def evaluate(model: State, round_: fr.Round) -> tuple[dict[str, float], int]:
        with group.connect(0) as client:
            model_id = client.get_training(round_.training_id).model_id
        if round_.model_version == 1:
            actor.tag_model(model_id, 1, "pinned")
        if round_.model_version in (3, 4):
            actor.tag_model(model_id, round_.model_version, "mine")
        return {"score": scores.get(round_.model_version, 0.1)}, 1

    training = group.run(
        lambda number: (plus_one, evaluate),
        MODEL,
        target_num_updates=7,
        metric_names=["score"],
        selection=fr.Selection("score", "MAXIMIZE"),
        keep_versions=2,
    )
    model_id = training.model_id
    assert tags(actor, model_id) == {
        7: ["last"],
        6: [],
        5: [],
        4: ["mine"],
        3: [],
        2: ["best"],
        1: ["pinned"],
        0: [],
    }
    stored = {version.version: version.stored for version in actor.model_versions(model_id)}
    assert [version for version, is_stored in stored.items() if not is_stored] == [5, 3, 0]
    for version, is_stored in stored.items():
        if is_stored:
            assert actor.download_model(model_id, version)["w"].tolist() == [version, version]
            continue
        with pytest.raises(fr.ModelNotFound, match="keep_versions"):
            actor.download_model(model_id, version, to=tmp_path / "gone")
    assert list(tmp_path.glob("*gone*")) == []
    with pytest.raises(fr.ModelNotFound, match="keep_versions"):
        actor.tag_model(model_id, 0, "pinned")
    with pytest.raises(fr.ModelNotFound, match="keep_versions"):
        actor.create_training(model_id=model_id, model_version=0, name="t", target_num_updates=1)


def test_a_training_starts_from_any_version_and_leaves_the_original_as_it_is(group: Federation) -> None:
    actor = group.actor
    model_id = group.run(lambda number: (plus_one,), MODEL, target_num_updates=3).model_id
    for number, version in enumerate((1, 0, None)):
        training = group.run(lambda number: (plus_one,), model_id=model_id, model_version=version, target_num_updates=1)
        copied = actor.get_model(training.model_id)
        start = 3 if version is None else version
        assert (copied.source_model_id, copied.source_version) == (model_id, start)
        assert actor.download_model(training.model_id, 0)["w"].tolist() == [start] * 2
        assert actor.download_model(training.model_id)["w"].tolist() == [start + 1] * 2
        assert training.spec.HasField("model_version") == (version is not None)
        assert len(list(actor.models())) == 2 + number
    assert list(tags(actor, model_id)) == [3, 2, 1, 0]
    assert actor.download_model(model_id)["w"].tolist() == [3, 3]
    with pytest.raises(fr.ModelNotFound, match="version 4"):
        actor.create_training(model_id=model_id, model_version=4, name="t", target_num_updates=1)


class OutOfRoom(Exception):
    """What a caller's function raises."""


def test_an_error_of_the_callers_own_comes_back_as_itself(group: Federation, tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        raise OutOfRoom

    with pytest.raises(OutOfRoom):
        group.actor.upload_model(MODEL, progress=progress)
    assert list(group.actor.models()) == []


def test_an_upload_that_is_repeated_makes_one_model(group: Federation) -> None:
    data = fr.to_safetensors(MODEL)
    stub = model_pb2_grpc.ModelServiceStub(group.actor._channel)
    metadata = [("x-token", group.actor_token)]
    spec = model_pb2.ModelSpec(
        name="once", sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), upload_id=str(uuid.uuid4())
    )
    message = model_pb2.UploadModelRequest(spec=spec, chunk=data)
    made = [stub.UploadModel(iter([message]), metadata=metadata).model.model_id for _ in range(3)]
    assert len(set(made)) == 1
    assert [model.model_id for model in group.actor.models()] == made[:1]
    group.actor.remove_model(made[0])
    with pytest.raises(grpc.RpcError, match="removed: use a new one"):
        stub.UploadModel(iter([message]), metadata=metadata)
