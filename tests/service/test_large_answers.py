"""Answers that would be larger than a message: they are cut, and say so."""

import json

from calls import TIMEOUT, Person, update_chunks
from fedround.v1 import model_pb2, training_pb2
from unit.safetensors_files import entry, with_header

HOSPITAL = "\U0001f3e5"


def upload(actor: Person, data: bytes, **spec: str) -> model_pb2.Model:
    chunks = [model_pb2.UploadModelRequest(chunk=one.chunk) for one in update_chunks(data)]
    messages = [model_pb2.UploadModelRequest(spec=model_pb2.ModelSpec(**spec)), *chunks]
    return actor.models.UploadModel(iter(messages), timeout=TIMEOUT).model


def test_a_model_of_20_000_tensors(actor: Person) -> None:
    header = {f"{number:05}{'n' * 85}": entry("U8", [1], number, number + 1) for number in range(20_000)}
    made = upload(actor, with_header(json.dumps(header, separators=(",", ":")).encode(), bytes(20_000)))
    found = actor.models.GetModel(model_pb2.GetModelRequest(model_id=made.model_id)).model
    assert found == made
    assert found.num_tensors == 20_000
    assert 10_000 < len(found.tensors) < 20_000
    assert [one.name for one in found.tensors] == list(header)[: len(found.tensors)]
    listed = actor.models.GetModels(model_pb2.GetModelsRequest()).models
    assert [(one.model_id, len(one.tensors), one.num_tensors) for one in listed] == [(made.model_id, 0, 0)]


def test_models_with_much_to_say(actor: Person) -> None:
    file = with_header(json.dumps({"w": entry("U8", [1], 0, 1)}).encode(), b"1")
    made = [upload(actor, file, description=HOSPITAL * 10_000).model_id for _ in range(60)]
    found: list[str] = []
    request = model_pb2.GetModelsRequest(page_size=1000)
    while not found or request.page_token:
        page = actor.models.GetModels(request)
        found += [one.model_id for one in page.models]
        request.page_token = page.next_page_token
    assert found == made[::-1]


def test_trainings_with_much_to_say(actor: Person) -> None:
    names = [f"{number:03}" + HOSPITAL * 97 for number in range(100)]
    made = [actor.create(description=HOSPITAL * 10_000, metric_names=names).training_id for _ in range(30)]
    found: list[str] = []
    request = training_pb2.GetTrainingsRequest(page_size=1000)
    while not found or request.page_token:
        page = actor.trainings.GetTrainings(request)
        found += [one.training_id for one in page.trainings]
        request.page_token = page.next_page_token
    assert found == made[::-1]
