"""Rules for adapters over a port: mixed ranks, refused shapes and models, versions as base and delta, replay."""

from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from calls import Person, digest, download, fails_with, kinds, until
from fedround.v1 import audit_pb2, model_pb2, training_pb2

OUT, IN, RANK = 6, 5, 3
A, B, W = "q.lora_A.weight", "q.lora_B.weight", "q.base_layer.weight"
DELTA, BASE = model_pb2.MODEL_PART_DELTA, model_pb2.MODEL_PART_BASE
Arrays = dict[str, np.ndarray]


def arrays(seed: int, rank: int = RANK) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {A: (rank, IN), B: (OUT, rank), "head.weight": (2, 3)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def model() -> Arrays:
    rng = np.random.default_rng(0)
    whole = {**arrays(0), W: rng.standard_normal((OUT, IN)), "norm.weight": np.ones(4)}
    return {name: array.astype(np.float32) for name, array in whole.items()}


def begin(actor: Person, clients: list[Person], rule: dict[str, Any], **spec: Any) -> training_pb2.Training:
    selection = spec.pop("tensors", {"trainable": ["*lora_*", "head.*"]})
    ids = [client.user_id for client in clients]
    made = actor.create(save(model()), client_ids=ids, aggregation=rule, tensors=selection, **spec)
    return actor.start(made.training_id)


def finish(actor: Person, training: training_pb2.Training) -> Arrays:
    last = list(actor.subscribe(training.training_id))[-1]
    assert last.HasField("training_finished"), last
    info, whole = download(actor, training.model_id)
    assert info.sha256 == digest(whole)
    return load(whole)


def mean(updates: list[tuple[Arrays, int]]) -> np.ndarray:
    total = sum(weight for _, weight in updates)
    return sum(weight / total * (one[B].astype(np.float64) @ one[A]) for one, weight in updates)


MIXED = [(arrays(1, 1), 2), (arrays(2, 3), 5), (arrays(3, 2), 1)]


def submit_all(clients: list[Person], training: training_pb2.Training, number: int = 0) -> None:
    for client, (one, weight) in zip(clients, MIXED, strict=True):
        client.submit(training.training_id, save(one), number, num_examples=weight)


def test_stack_over_two_rounds_of_mixed_ranks(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:3], {"lora_stack": {"scaling": 2}}, target_num_updates=2)
    for number in range(2):
        submit_all(clients[:3], training, number)
        until(lambda number=number: actor.get(training.training_id).model_version == number + 1)
    first = model()
    found = finish(actor, training)
    np.testing.assert_allclose(found[W], first[W] + 2 * 2 * mean(MIXED), rtol=1e-5, atol=1e-5)
    assert np.array_equal(found[A], first[A])
    assert not found[B].any()
    assert np.array_equal(found["norm.weight"], first["norm.weight"])
    # What changes is in the delta, also the weight, and the base is the first version.
    assert load(download(actor, training.model_id, part=DELTA)[1]).keys() == {A, B, W, "head.weight"}
    assert digest(download(actor, training.model_id, part=BASE)[1]) == digest(save(first))
    for number in range(2):
        found_again = actor.audit.ReplayRound(
            audit_pb2.ReplayRoundRequest(training_id=training.training_id, round=number)
        )
        assert found_again.replayed_sha256 == found_again.recorded_sha256
        assert found_again.distance == 0


@pytest.mark.parametrize("rank", [0, 2])
def test_svd_of_mixed_ranks(actor: Person, clients: list[Person], rank: int) -> None:
    training = begin(actor, clients[:3], {"lora_svd": {"rank": rank}})
    assert actor.get(training.training_id).spec.aggregation.lora_svd.rank == rank
    submit_all(clients[:3], training)
    found = finish(actor, training)
    u, s, vt = np.linalg.svd(mean(MIXED))
    kept = rank or RANK
    np.testing.assert_allclose(found[B] @ found[A], (u[:, :kept] * s[:kept]) @ vt[:kept], rtol=1e-5, atol=1e-5)
    assert not found[B][:, kept:].any()
    assert load(download(actor, training.model_id, part=DELTA)[1]).keys() == {A, B, "head.weight"}
    weights = np.array([weight for _, weight in MIXED])
    heads = np.array([one["head.weight"] for one, _ in MIXED], np.float64)
    expected = np.average(heads, axis=0, weights=weights).astype(np.float32)
    np.testing.assert_allclose(found["head.weight"], expected, rtol=1e-6)


def test_frozen_matrices(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:2], {"freeze_a": {}, "server_optimizer": {"sgd": {}}})
    for seed, client in enumerate(clients[:2], 1):
        client.submit(training.training_id, save(arrays(seed)))
    found = finish(actor, training)
    assert np.array_equal(found[A], model()[A])
    np.testing.assert_allclose(found[B], (arrays(1)[B] + arrays(2)[B]) / 2, rtol=1e-6)


def test_updates_with_other_shapes_are_refused(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:1], {"lora_svd": {}}, update_precision="UPDATE_PRECISION_FLOAT16")
    low = arrays(1, 2)
    for wrong in (
        arrays(1, 4),
        {**low, A: arrays(1, 1)[A]},
        {**low, A: arrays(1)[A]},
        {**low, B: low[B][:4]},
        {name: array.astype(np.float16) for name, array in low.items()},
    ):
        with fails_with("INVALID_ARGUMENT", "UPDATE_MISMATCH", "tensor 'q.lora_", "lower rank, from 1 on, the same in"):
            clients[0].submit(training.training_id, save(wrong))
    bad = {**low, B: low[B] * np.nan}
    with fails_with("INVALID_ARGUMENT", "UPDATE_NOT_FINITE", "'q.lora_B.weight'"):
        clients[0].submit(training.training_id, save(bad))
    clients[0].submit(training.training_id, save(low))
    found = finish(actor, training)
    np.testing.assert_allclose(found[B] @ found[A], mean([(low, 1)]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", ["fed_avg", "freeze_a"])
def test_other_rules_take_the_rank_of_the_model_only(actor: Person, clients: list[Person], rule: str) -> None:
    training = begin(actor, clients[:1], {rule: {}})
    with fails_with("INVALID_ARGUMENT", "UPDATE_MISMATCH", "F32[2, 5], and the round asks for F32[3, 5]"):
        clients[0].submit(training.training_id, save(arrays(1, 2)))


def test_a_limit_of_the_distance_needs_the_rank_of_the_model(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:1], {"lora_stack": {}}, max_update_norm=100)
    with fails_with("INVALID_ARGUMENT", "UPDATE_MISMATCH", "max_update_norm"):
        clients[0].submit(training.training_id, save(arrays(1, 2)))
    clients[0].submit(training.training_id, save(arrays(1)))
    np.testing.assert_allclose(finish(actor, training)[W], model()[W] + mean([(arrays(1), 1)]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [3, 250_000])
def test_updates_of_lower_ranks_beside_infinite_buffers(actor: Person, clients: list[Person], size: int) -> None:
    """A large update is checked in the worker, where the model has another shape than the adapter."""
    mask = np.full(size, -np.inf, np.float32)
    low = {**arrays(1, 2), "mask": mask}
    made = actor.create(
        save({**model(), "mask": mask}),
        client_ids=[clients[0].user_id],
        aggregation={"lora_stack": {}},
        tensors={"trainable": ["*lora_*", "head.*", "mask"]},
        allow_non_finite_buffers=True,
    )
    actor.start(made.training_id)
    for name in (A, "head.weight"):
        with fails_with("INVALID_ARGUMENT", "UPDATE_NOT_FINITE", name):
            clients[0].submit(made.training_id, save({**low, name: np.full_like(low[name], np.inf)}))
    clients[0].submit(made.training_id, save(low))
    found = finish(actor, made)
    np.testing.assert_allclose(found[W], model()[W] + mean([(low, 1)]), rtol=1e-5, atol=1e-5)
    assert np.array_equal(found["mask"], mask)


@pytest.mark.parametrize("rule", ["lora_stack", "lora_svd"])
@pytest.mark.parametrize(
    "stage",
    [
        {"clipping": {"fixed": {}}},
        {"mixing": {"bucketing": {}}},
        {"server_optimizer": {"adam": {}}},
    ],
    ids=str,
)
def test_no_stage_goes_with_products(actor: Person, rule: str, stage: dict[str, Any]) -> None:
    (field,) = stage
    words = (f"does not go with {rule}", "products of adapters")
    with fails_with("INVALID_ARGUMENT", "AGGREGATION_INCOMPATIBLE", *words) as error:
        actor.create(save(model()), aggregation={rule: {}, **stage}, tensors={"trainable": ["*lora_*"]})
    assert list(error.details.fields) == [f"spec.aggregation.{field}"]


@pytest.mark.parametrize(
    ("rule", "trainable", "reason", "field", "words"),
    [
        ({"lora_svd": {"rank": 4}}, "*lora_*", "FIELD_INVALID", "spec.aggregation.lora_svd.rank", A),
        ({"lora_stack": {"scaling": -1}}, "*lora_*", "FIELD_INVALID", "spec.aggregation.lora_stack.scaling", "> 0"),
        ({"lora_svd": {}}, "*lora_B*", "FIELD_INVALID", "spec.tensors.trainable", A),
        ({"freeze_a": {}}, "*lora_A*", "FIELD_INVALID", "spec.tensors.trainable", A),
        ({"lora_stack": {}}, "*", "FIELD_INVALID", "spec.tensors.trainable", W),
        ({"freeze_a": {}}, "head.*", "AGGREGATION_INCOMPATIBLE", "spec.aggregation.freeze_a", "lora_B"),
    ],
    ids=str,
)
def test_models_and_options_that_do_not_fit(
    actor: Person, rule: dict[str, Any], trainable: str, reason: str, field: str, words: str
) -> None:
    before = actor.trainings.GetTrainings(training_pb2.GetTrainingsRequest()).trainings
    with fails_with("INVALID_ARGUMENT", reason, field, words) as error:
        actor.create(save(model()), aggregation=rule, tensors={"trainable": [trainable]})
    assert list(error.details.fields) == [field]
    assert actor.trainings.GetTrainings(training_pb2.GetTrainingsRequest()).trainings == before


def test_a_training_goes_on_from_a_version_with_merged_weights(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:3], {"lora_stack": {}})
    submit_all(clients[:3], training)
    first = finish(actor, training)
    again = actor.create(
        b"",
        model_id=training.model_id,
        client_ids=[clients[0].user_id],
        aggregation={"lora_svd": {}},
        tensors={"trainable": ["*lora_*"]},
    )
    actor.start(again.training_id)
    low = {name: array for name, array in arrays(8, 2).items() if "lora" in name}
    clients[0].submit(again.training_id, save(low))
    second = finish(actor, again)
    assert np.array_equal(second[W], first[W])
    np.testing.assert_allclose(second[B] @ second[A], mean([(low, 1)]), rtol=1e-5, atol=1e-5)
    assert kinds(list(actor.subscribe(again.training_id)))[-1] == "training_finished"
