"""Shadow aggregations and evaluations of stored models, over a real port."""

from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from calls import Person, download, fails_with, model_file, new_id, until
from fedround.v1 import aggregation_pb2, audit_pb2, model_pb2, round_pb2, training_pb2

WEIGHTS = (1, 2, 6)


def trained(actor: Person, clients: list[Person], *shadows: dict[str, Any], **spec: Any) -> training_pb2.Training:
    """A training of two rounds: in round n, client c sends the model filled with 10 n + c^2."""
    aggregation = {"shadow": list(shadows), **spec.pop("aggregation", {})}
    made = actor.create(
        client_ids=[client.user_id for client in clients], target_num_updates=2, aggregation=aggregation, **spec
    )
    actor.start(made.training_id)
    for number in range(2):
        for place, client in enumerate(clients):
            sent = model_file(10 * number + place**2)
            client.submit(made.training_id, sent, number, num_examples=WEIGHTS[place])
        until(lambda number=number: actor.get(made.training_id).model_version == number + 1)
    return actor.get(made.training_id)


def first(person: Person, model_id: str, version: int) -> float:
    """The first number of the weights of a version."""
    return float(safetensors.numpy.load(download(person, model_id, version=version)[1])["weight"][0, 0])


def test_each_shadow_makes_versions_of_its_own_around_the_model_of_the_round(
    actor: Person, clients: list[Person]
) -> None:
    momentum = {"server_optimizer": {"sgd": {"learning_rate": 1.0, "momentum": 0.5}}}
    made = trained(actor, clients, {"median": {}}, momentum)
    median, moved = made.shadow_model_ids
    main = [first(actor, made.model_id, version) for version in range(3)]
    np.testing.assert_allclose(main, [0, 26 / 9, 10 + 26 / 9], rtol=1e-6)
    assert [first(actor, median, version) for version in range(3)] == [0, 1, 11]
    # It begins from the model of the round, with the momentum of its own branch.
    expected = [0, 26 / 9, main[1] + 0.5 * (26 / 9) + (main[2] - main[1])]
    np.testing.assert_allclose([first(actor, moved, version) for version in range(3)], expected, rtol=1e-6)


def test_the_model_of_a_shadow_is_one_of_the_actor(actor: Person, clients: list[Person]) -> None:
    made = trained(actor, clients, {"krum": {"f": 0}}, name="digits")
    (shadow,) = made.shadow_model_ids
    model = actor.models.GetModel(model_pb2.GetModelRequest(model_id=shadow)).model
    assert (model.name, model.version, model.source_model_id) == ("digits: shadow 1, krum(f=0)", 2, made.model_id)
    origin = actor.audit.GetContributions(audit_pb2.GetContributionsRequest(model_id=shadow)).origin
    assert (origin.training_id, origin.aggregation.WhichOneof("algorithm")) == (made.training_id, "krum")
    assert clients[0].get(made.training_id).shadow_model_ids == []
    with fails_with("NOT_FOUND", "MODEL_NOT_FOUND"):
        download(clients[0], shadow)
    listed = actor.trainings.GetTrainings(training_pb2.GetTrainingsRequest()).trainings
    assert [one.shadow_model_ids for one in listed if one.training_id == made.training_id] == [[]]
    assert [one.WhichOneof("algorithm") for one in made.spec.aggregation.shadow] == ["krum"]
    actor.models.RemoveModel(model_pb2.RemoveModelRequest(model_id=shadow))


def test_a_running_training_needs_the_models_of_its_shadows(actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=[clients[0].user_id], aggregation={"shadow": [{"median": {}}]})
    (shadow,) = made.shadow_model_ids
    with fails_with("FAILED_PRECONDITION", "MODEL_IN_USE", made.training_id):
        actor.models.RemoveModel(model_pb2.RemoveModelRequest(model_id=shadow))
    other = actor.create(b"", client_ids=[clients[0].user_id], model_id=shadow)
    assert other.model_id != shadow


def test_a_shadow_without_an_aggregate_does_not_hurt_the_round(
    actor: Person, clients: list[Person], admin: Any
) -> None:
    made = trained(actor, clients, {"krum": {"f": 3}})
    (shadow,) = made.shadow_model_ids
    assert [first(actor, shadow, version) for version in range(3)] == [
        0,
        0,
        first(actor, made.model_id, 1),
    ]
    request = audit_pb2.ReadAuditRequest(chain=made.training_id)
    entries = [entry for page in admin.audit.ReadAudit(request) for entry in page.entries]
    made_entries = [one for one in entries if one.model_id == shadow and one.action == "shadow_version_made"]
    assert [one.subject for one in made_entries] == ["1", "2"]
    assert all("needs 9" in one.facts for one in made_entries)


def test_a_shadow_of_a_part_of_the_model_has_deltas_of_the_same_base(actor: Person, clients: list[Person]) -> None:
    made = actor.create(
        client_ids=[client.user_id for client in clients],
        tensors={"trainable": ["weight"]},
        aggregation={"shadow": [{"median": {}}, {"krum": {"f": 3}}]},
    )
    actor.start(made.training_id)
    for place, client in enumerate(clients):
        client.submit(made.training_id, safetensors.numpy.save({"weight": np.full((2, 3), place**2, np.float32)}))
    until(lambda: actor.get(made.training_id).model_version == 1)
    assert [first(actor, id_, 1) for id_ in made.shadow_model_ids] == [1, 0]
    found = {
        id_: actor.models.GetModelVersions(model_pb2.GetModelVersionsRequest(model_id=id_)).versions[0].base_sha256
        for id_ in (made.model_id, *made.shadow_model_ids)
    }
    assert found[made.model_id] == found[made.shadow_model_ids[0]] != ""


def test_participants_send_what_a_shadow_needs(actor: Person, clients: list[Person]) -> None:
    shadows = [{"fed_nova": {}}, {"q_fed_avg": {}}]
    made = actor.create(client_ids=[clients[0].user_id], aggregation={"shadow": shadows})
    actor.start(made.training_id)
    events = clients[0].subscribe(made.training_id)
    started = next(event.round_started for event in events if event.HasField("round_started"))
    assert [one.WhichOneof("algorithm") for one in started.aggregation.shadow] == ["fed_nova", "q_fed_avg"]
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "fed_nova needs the number of local"):
        clients[0].submit(made.training_id, model_file(1), initial_loss=0.5)
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "q_fed_avg needs the loss"):
        clients[0].submit(made.training_id, model_file(1), local_steps=2)
    clients[0].submit(made.training_id, model_file(1), local_steps=2, initial_loss=0.5)
    until(lambda: actor.get(made.training_id).model_version == 1)
    assert len(made.shadow_model_ids) == 2


@pytest.mark.parametrize(
    ("aggregation", "field"),
    [
        ({"shadow": [{}, {"shadow": [{}]}]}, "shadow[1].shadow"),
        ({"shadow": [{"buffering": {}}]}, "shadow[0].buffering"),
        ({"shadow": [{"differential_privacy": {"noise_multiplier": 1}}]}, "shadow[0].differential_privacy"),
        ({"shadow": [{"scaffold": {}}]}, "shadow[0].scaffold"),
        ({"shadow": [{"fed_dc": {}}]}, "shadow[0].fed_dc"),
        ({"fed_dc": {}, "shadow": [{"median": {}}]}, "shadow"),
        ({"lora_svd": {}, "shadow": [{"median": {}}]}, "shadow"),
        ({"shadow": [{"lora_stack": {}}]}, "shadow[0].lora_stack"),
        ({"shadow": [{"lora_svd": {}}]}, "lora_svd"),
        ({"shadow": [{"fed_nova": {}, "mixing": {"bucketing": {}}}]}, "shadow[0].mixing"),
    ],
    ids=str,
)
def test_what_does_not_go_with_shadows_is_rejected(actor: Person, aggregation: dict[str, Any], field: str) -> None:
    with fails_with("INVALID_ARGUMENT", "AGGREGATION_INCOMPATIBLE", f"spec.aggregation.{field}:"):
        actor.create(aggregation=aggregation)


def test_options_of_shadows_are_checked(actor: Person) -> None:
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "at most 8"):
        actor.create(aggregation={"shadow": [{}] * 9})
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "spec.aggregation.shadow[1].trimmed_mean.beta"):
        actor.create(aggregation={"shadow": [{}, {"trimmed_mean": {"beta": 0.5}}]})
    with fails_with("INVALID_ARGUMENT", "UNKNOWN_CLIENTS", "nothing was changed"):
        actor.create(aggregation={"shadow": [{"fl_trust": {"trusted_client_id": new_id()}}]})
    made = actor.create(aggregation={"shadow": [{"trimmed_mean": {}}]})
    assert made.spec.aggregation.shadow[0].trimmed_mean == aggregation_pb2.TrimmedMean(beta=0.1)


def evaluated(actor: Person, clients: list[Person], **spec: Any) -> training_pb2.Training:
    made = actor.create(
        b"", client_ids=[client.user_id for client in clients], target_num_updates=0, metric_names=["accuracy"], **spec
    )
    actor.start(made.training_id)
    for place, client in enumerate(clients, 1):
        client.rounds.SubmitMetrics(
            round_pb2.SubmitMetricsRequest(
                training_id=made.training_id, num_examples=place, metrics={"accuracy": place / 10}
            )
        )
    until(lambda: actor.get(made.training_id).state == training_pb2.TRAINING_STATE_COMPLETED)
    return actor.get(made.training_id)


def test_a_branch_is_evaluated_by_a_training_without_updates(actor: Person, clients: list[Person]) -> None:
    made = trained(actor, clients, {"median": {}})
    (shadow,) = made.shadow_model_ids
    done = evaluated(actor, clients, model_id=shadow, model_version=1)
    assert (done.model_version, done.round, done.error.reason) == (0, 0, "")
    # The evaluated version is the first of a copy, which has the metrics.
    assert first(clients[0], done.model_id, 0) == first(actor, shadow, 1)
    reports = actor.models.GetMetrics(model_pb2.GetMetricsRequest(model_id=done.model_id)).reports
    assert reports[0].metrics["accuracy"] == pytest.approx((0.1 + 2 * 0.2 + 3 * 0.3) / 6)
    assert [one.reporter_id for one in reports[1:]] == sorted(client.user_id for client in clients)


def test_a_model_that_was_never_trained_is_evaluated(actor: Person, clients: list[Person]) -> None:
    spec = model_pb2.ModelSpec(name="mine")
    data = model_file(3)
    request = model_pb2.UploadModelRequest(spec=spec, chunk=data)
    model = actor.models.UploadModel(iter([request])).model
    done = evaluated(actor, clients[:1], model_id=model.model_id, selection={"metric": "accuracy", "goal": 2})
    assert (done.model_id, done.best_version, done.best_value) == (model.model_id, 0, 0.1)


@pytest.mark.parametrize("spec", [{"metric_names": ["loss"]}, {"metric_names": []}, {"evaluation": 3}], ids=str)
def test_a_training_without_updates_evaluates_a_stored_model(actor: Person, spec: dict[str, Any]) -> None:
    made = {} if spec.get("metric_names") else {"model_id": actor.create().model_id}
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "spec.target_num_updates", "0 to evaluate a stored model"):
        actor.create(b"", **{"target_num_updates": 0, "metric_names": ["loss"], **made, **spec})
