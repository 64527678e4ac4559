"""Server optimizers by raw calls: a training that goes on from a version equals a longer one, and reports are shown."""

from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from calls import Person, download, model_file
from fedround.v1 import model_pb2, round_pb2, training_pb2

ADAM = {"server_optimizer": {"adam": {"learning_rate": 0.5, "bias_correction": True}}}
SPECS: dict[str, dict[str, Any]] = {
    "whole": {},
    "part": {"tensors": {"trainable": ["weight"]}},
    "half": {"update_precision": "UPDATE_PRECISION_FLOAT16"},
    "int8": {"update_precision": "UPDATE_PRECISION_INT8"},
}


def update(kind: str, number: int, value: float) -> bytes:
    """An update: the whole model, a part of it, or differences."""
    weight = np.linspace(-1, value, 6).reshape(2, 3).astype(np.float32) + number
    if kind == "part":
        return save({"weight": weight})
    if kind == "whole":
        return model_file(value, weight=weight)
    count = np.array(number, np.int64)
    if kind == "half":
        return save({"weight": weight.astype(np.float16), "bias": np.full(3, value, np.float16), "count": count})
    scales = {f"{name}.int8_scales": np.array([value / 100], np.float32) for name in ("weight", "bias")}
    whole = {"weight": np.full((2, 3), 7 + number, np.int8), "bias": np.full(3, -3, np.int8), "count": count}
    return save({**whole, **scales})


def run(
    actor: Person, clients: list[Person], training: training_pb2.Training, kind: str, first: int, rounds: int
) -> None:
    """Runs a training whose rounds are the same whichever training they belong to."""
    events = actor.subscribe(training.training_id)
    actor.start(training.training_id)
    for number in range(rounds):
        for client, value in zip(clients, (1.5, 0.25), strict=True):
            client.submit(training.training_id, update(kind, first + number, value), number)
        seen = []
        for event in events:
            seen.append(event)
            if event.HasField("round_closed"):
                break
        assert seen[-1].HasField("round_closed"), seen[-1]
    events.cancel()


def create(actor: Person, clients: list[Person], rounds: int, source: str = "", **spec: Any) -> training_pb2.Training:
    spec = {"target_num_updates": rounds, "client_ids": [client.user_id for client in clients], **spec}
    if not source:
        return actor.create(model_file(0.5), **spec)
    wanted = training_pb2.TrainingSpec(name="t", model_id=source, **spec)
    return actor.trainings.CreateTraining(iter([training_pb2.CreateTrainingRequest(spec=wanted)])).training


@pytest.mark.parametrize("kind", SPECS)
def test_going_on_from_a_version_equals_a_longer_training(actor: Person, clients: list[Person], kind: str) -> None:
    clients, spec = clients[:2], {"aggregation": ADAM, **SPECS[kind]}
    longer = create(actor, clients, 3, **spec)
    run(actor, clients, longer, kind, 0, 3)
    shorter = create(actor, clients, 1, **spec)
    run(actor, clients, shorter, kind, 0, 1)
    rest = create(actor, clients, 2, shorter.model_id, **spec)
    run(actor, clients, rest, kind, 1, 2)
    expected = download(actor, longer.model_id)[1]
    assert download(actor, rest.model_id)[1] == expected
    # From an older version, too.
    again = create(actor, clients, 1, rest.model_id, model_version=1, **spec)
    run(actor, clients, again, kind, 2, 1)
    assert download(actor, again.model_id)[1] == expected
    anew = create(actor, clients, 2, shorter.model_id, **{**spec, "aggregation": {"server_optimizer": {"yogi": {}}}})
    run(actor, clients, anew, kind, 1, 2)
    assert download(actor, anew.model_id)[1] != expected


def test_a_training_of_other_tensors_begins_anew(actor: Person, clients: list[Person]) -> None:
    clients = clients[:1]
    first = create(actor, clients, 1, aggregation=ADAM)
    events = actor.subscribe(first.training_id)
    actor.start(first.training_id)
    clients[0].submit(first.training_id, model_file(1), 0)
    assert any(event.HasField("round_closed") for event in events)
    model = load(download(actor, first.model_id)[1])
    part = create(actor, clients, 1, first.model_id, aggregation=ADAM, tensors={"trainable": ["bias"]})
    events = actor.subscribe(part.training_id)
    actor.start(part.training_id)
    clients[0].submit(part.training_id, save({"bias": model["bias"] + 4}), 0)
    assert any(event.HasField("round_closed") for event in events)
    # In the first step, bias correction makes delta of m, and delta^2 + 99 tau^2 of v.
    after = load(download(actor, part.model_id)[1])
    np.testing.assert_allclose(after["bias"], model["bias"] + 0.5 * 4 / ((16 + 99e-6) ** 0.5 + 1e-3), rtol=1e-9)


def test_state_files_are_not_offered_as_models(actor: Person, clients: list[Person]) -> None:
    training = create(actor, clients[:2], 1, aggregation=ADAM)
    run(actor, clients[:2], training, "whole", 0, 1)
    versions = actor.models.GetModelVersions(model_pb2.GetModelVersionsRequest(model_id=training.model_id)).versions
    assert [(one.version, one.HasField("posterior")) for one in versions] == [(1, False), (0, False)]
    assert len(actor.models.GetModels(model_pb2.GetModelsRequest()).models) == 1


def test_the_actor_sees_reports_about_updates(actor: Person, clients: list[Person]) -> None:
    clients = clients[:2]
    training = create(actor, clients, 1, aggregation={"clipping": {"fixed": {"norm": 1.0}}})
    events = actor.subscribe(training.training_id)
    actor.start(training.training_id)
    base = model_file(0.5)
    for client, examples in zip(clients, (3, 1), strict=True):
        far = load(base)["weight"] + (2 if client is clients[0] else 0)
        data = model_file(0.5, weight=far)
        client.submit(training.training_id, data, 0, num_examples=examples)
    assert any(event.HasField("round_closed") for event in events)
    found = actor.rounds.GetRound(round_pb2.GetRoundRequest(training_id=training.training_id, round=0)).round
    reports = {one.user_id: one.report for one in found.participants}
    far, same = reports[clients[0].user_id], reports[clients[1].user_id]
    assert (far.norm, far.clip_scale, far.cosine) == pytest.approx((24**0.5, 24**-0.5, 1.0))
    assert far.share == pytest.approx(0.75 * 24**-0.5)
    assert (same.norm, same.clip_scale, same.share) == (0, 1, 0.25)
    assert not same.HasField("cosine")
    assert not far.HasField("selected")
    assert {far.distance_rank, same.distance_rank} == {1, 2}


def test_without_inner_products_only_the_share_is_known(actor: Person, clients: list[Person]) -> None:
    training = create(actor, clients[:2], 1)
    run(actor, clients[:2], training, "whole", 0, 1)
    found = actor.rounds.GetRound(round_pb2.GetRoundRequest(training_id=training.training_id, round=0)).round
    assert [one.report for one in found.participants] == [round_pb2.UpdateReport(share=0.5)] * 2
