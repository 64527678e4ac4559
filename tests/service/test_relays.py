"""Trainings that allow relays, and those that make their sums, over a real port."""

import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from calls import Person, download, fails_with, new_id, until
from fedround.v1 import audit_pb2, training_pb2

NEVER = training_pb2.EVALUATION_NEVER
MODEL = {
    "weight": np.zeros((2, 3), np.float32),
    "bias": np.zeros(3, np.float64),
    "norm.num_batches_tracked": np.array(0, np.int64),
}
COUNTED = save({**MODEL, "count": np.array(0, np.int64)})
SUM: dict[str, Any] = {"aggregation": {"partial_sum": {}}}


def file_of(number: int) -> bytes:
    rng = np.random.default_rng(number)
    return save(
        {
            "weight": rng.normal(size=(2, 3)).astype(np.float32),
            "bias": rng.normal(size=3) * 10.0 ** rng.integers(-9, 9, 3),
            "norm.num_batches_tracked": np.array(number, np.int64),
        }
    )


def begin(actor: Person, clients: list[Person], **spec: Any) -> training_pb2.Training:
    spec = {"data": save(MODEL), "client_ids": [client.user_id for client in clients], **spec}
    return actor.start(actor.create(**spec).training_id)


def result(actor: Person, training: training_pb2.Training) -> tuple[str, bytes]:
    """The digest and the file of version 1."""
    until(lambda: actor.get(training.training_id).model_version == 1)
    info, data = download(actor, training.model_id, version=1)
    return info.sha256, data


def counts(data: bytes) -> dict[str, int]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {name: int(value) for name, value in header["__metadata__"].items()}


def summed(actor: Person, clients: list[Person], first: int, **spec: Any) -> bytes:
    training = begin(actor, clients, **SUM, **spec)
    for number, client in enumerate(clients, first):
        client.submit(training.training_id, file_of(number), num_examples=number + 1)
    return result(actor, training)[1]


def test_the_version_is_that_of_all_updates(actor: Person, clients: list[Person]) -> None:
    flat = begin(actor, clients, allow_relays=True)
    for number, client in enumerate(clients):
        client.submit(flat.training_id, file_of(number), num_examples=number + 1)
    half = 2
    nested = begin(actor, clients, allow_relays=True)
    assert actor.get(nested.training_id).spec.allow_relays
    assert clients[0].get(nested.training_id).spec.allow_relays
    data = summed(actor, clients[:half], 0)
    found = counts(data)
    assert found == {"num_examples": sum(range(1, half + 1)), "num_updates": half}
    shapes = {name: (one.dtype.name, one.shape) for name, one in load(data).items()}
    assert shapes == {
        "weight": ("float64", (2, 3, 2)),
        "bias": ("float64", (3, 2)),
        "norm.num_batches_tracked": ("int64", ()),
    }
    receipt = clients[0].submit(nested.training_id, data, **found)
    assert clients[0].submit(nested.training_id, data, **found) == receipt
    for number, client in enumerate(clients[half:], half):
        client.submit(nested.training_id, file_of(number), num_examples=number + 1)
    # The other client of the relay has nothing of its own to send.
    clients[1].submit(nested.training_id, file_of(0), num_examples=0)
    assert result(actor, nested)[0] == result(actor, flat)[0]
    replayed = actor.audit.ReplayRound(audit_pb2.ReplayRoundRequest(training_id=nested.training_id, round=0))
    assert replayed.replayed_sha256 == replayed.recorded_sha256


def test_participants_of_a_sum_see_what_the_parent_asks_for(actor: Person, clients: list[Person]) -> None:
    for mu, rule in ((0.0, "fed_avg"), (0.5, "fed_prox")):
        training = begin(actor, clients[:1], aggregation={"partial_sum": {"mu": mu}})
        (event,) = clients[0].subscribe(training.training_id).next(1)
        seen = event.round_started.aggregation
        assert (seen.WhichOneof("algorithm"), seen.fed_prox.mu) == (rule, mu)
        assert clients[0].get(training.training_id).spec.aggregation == seen
        assert actor.get(training.training_id).spec.aggregation.partial_sum.mu == mu


@pytest.mark.parametrize(
    ("spec", "reason", "field"),
    [
        *(
            ({"aggregation": {rule: {}}}, "AGGREGATION_INCOMPATIBLE", f"spec.aggregation.{rule}")
            for rule in (
                "median",
                "trimmed_mean",
                "krum",
                "geometric_median",
                "q_fed_avg",
                "fed_nova",
                "fed_dc",
                "scaffold",
                "fed_dyn",
                "freeze_a",
            )
        ),
        (
            {"aggregation": {"clipping": {"fixed": {"norm": 1.0}}}},
            "AGGREGATION_INCOMPATIBLE",
            "spec.aggregation.clipping",
        ),
        ({"aggregation": {"mixing": {"bucketing": {}}}}, "AGGREGATION_INCOMPATIBLE", "spec.aggregation.mixing"),
        ({"aggregation": {"buffering": {}}}, "AGGREGATION_INCOMPATIBLE", "spec.aggregation.buffering"),
        ({"aggregation": {"shadow": [{"fed_avg": {}}]}}, "AGGREGATION_INCOMPATIBLE", "spec.aggregation.shadow"),
        ({"uncertainty": {"swag": {}}}, "FIELD_INVALID", "spec.uncertainty"),
        ({"data": COUNTED}, "FIELD_INVALID", "spec.allow_relays"),
    ],
    ids=str,
)
def test_what_does_not_go_with_relays(actor: Person, spec: dict[str, Any], reason: str, field: str) -> None:
    with fails_with("INVALID_ARGUMENT", reason, field) as error:
        actor.create(**{"data": save(MODEL), "allow_relays": True, **spec})
    assert list(error.details.fields) == [field]


@pytest.mark.parametrize(
    ("spec", "reason", "field"),
    [
        ({"target_num_updates": 2}, "FIELD_INVALID", "spec.target_num_updates"),
        ({"metric_names": ["loss"]}, "FIELD_INVALID", "spec.evaluation"),
        ({"uncertainty": {"swag": {}}}, "FIELD_INVALID", "spec.uncertainty"),
        ({"data": COUNTED}, "FIELD_INVALID", "spec.aggregation.partial_sum"),
        ({"aggregation": {"partial_sum": {"mu": -1.0}}}, "FIELD_INVALID", "spec.aggregation.partial_sum.mu"),
        (
            {"aggregation": {"partial_sum": {}, "server_optimizer": {"sgd": {}}}},
            "AGGREGATION_INCOMPATIBLE",
            "spec.aggregation.server_optimizer",
        ),
        (
            {"aggregation": {"partial_sum": {}, "shadow": [{"median": {}}]}},
            "AGGREGATION_INCOMPATIBLE",
            "spec.aggregation.shadow",
        ),
        (
            {"aggregation": {"shadow": [{"partial_sum": {}}]}},
            "AGGREGATION_INCOMPATIBLE",
            "spec.aggregation.shadow[0].partial_sum",
        ),
    ],
    ids=str,
)
def test_what_does_not_go_with_a_sum(actor: Person, spec: dict[str, Any], reason: str, field: str) -> None:
    with fails_with("INVALID_ARGUMENT", reason, field) as error:
        actor.create(**{"data": save(MODEL), **SUM, **spec})
    assert list(error.details.fields) == [field]


def test_metrics_of_updates_go_with_a_sum(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:2], **SUM, metric_names=["loss"], evaluation=NEVER)
    for number, client in enumerate(clients[:2]):
        client.submit(training.training_id, file_of(number), metrics={"loss": float(number)})
    result(actor, training)


def test_sums_that_are_not_what_the_round_asks_for(actor: Person, clients: list[Person]) -> None:
    client = clients[0]
    without = begin(actor, clients)
    training = begin(actor, clients, allow_relays=True, max_num_examples=10)
    good = {"weight": np.ones((2, 3, 2)), "bias": np.ones((3, 2)), "norm.num_batches_tracked": np.array(3, np.int64)}

    def submit(tensors: dict[str, np.ndarray], training_id: str = training.training_id, **spec: Any) -> None:
        spec = {"num_examples": 5, "num_updates": 2, **spec}
        client.submit(training_id, save(tensors, {"num_updates": str(spec["num_updates"])}), **spec)

    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "allow_relays") as error:
        submit(good, without.training_id)
    assert list(error.details.fields) == ["spec.num_updates"]
    for changed, reason, words in (
        ({"weight": np.ones((2, 3, 3))}, "UPDATE_MISMATCH", "F64[2, 3, 2]"),
        ({"weight": np.ones((2, 3, 4))}, "UPDATE_MISMATCH", "asks for F64[2, 3, 2]"),
        ({"weight": np.ones((2, 3, 2), np.float32)}, "UPDATE_MISMATCH", "'weight' is F32"),
        ({"weight": np.ones((2, 3), np.float32)}, "UPDATE_MISMATCH", "'weight' is F32[2, 3]"),
        ({"more": np.ones(2)}, "TENSORS_MISMATCH", "'more'"),
        ({"bias": np.full((3, 2), np.inf)}, "UPDATE_NOT_FINITE", "'bias'"),
    ):
        with fails_with("INVALID_ARGUMENT", reason, words):
            submit({**good, **changed})
    # An update of one's own may not have the form of a sum, and the other way round.
    with fails_with("INVALID_ARGUMENT", "UPDATE_MISMATCH", "'bias' is F64[3, 2]"):
        submit(good, num_updates=0)
    with fails_with("INVALID_ARGUMENT", "UPDATE_MISMATCH", "asks for F64[3, 2]"):
        submit(MODEL)
    for changed, words in (
        ({"weight": np.full((2, 3, 2), 1e39 * 6)}, "'weight' has the component 6e+39"),
        ({"weight": np.full((2, 3, 2), 2.0**-150)}, "'weight' has components that are no multiples of 2^-149"),
        ({"bias": np.full((3, 2), 2.0**960)}, "'bias' has the component"),
    ):
        with fails_with("INVALID_ARGUMENT", "UPDATE_MISMATCH", words):
            submit({**good, **changed})
    for examples, updates in ((21, 2), (11, 1), (2**53 + 1, 2**60), (11, 0), (-1, 2)):
        with fails_with("INVALID_ARGUMENT", "NUM_EXAMPLES", "must be in 0.."):
            submit(good, num_examples=examples, num_updates=updates)
    submit(good, num_examples=20)
    assert actor.get(training.training_id).updates_arrived == 1


def test_a_sum_that_cannot_be_added_does_not_fail_the_round(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:2], **SUM, allow_relays=True)
    gaps = np.zeros((2, 3, 8))
    gaps[:] = 2.0 ** np.arange(900, -700, -200)
    wrong = {"weight": gaps, "bias": np.zeros((3, 8)), "norm.num_batches_tracked": np.array(3, np.int64)}
    with fails_with("INVALID_ARGUMENT", "UPDATE_MISMATCH", "tensor 'weight'"):
        clients[0].submit(training.training_id, save(wrong, {"num_updates": "2"}), num_examples=2, num_updates=2)
    clients[0].submit(training.training_id, file_of(0))
    clients[1].submit(training.training_id, file_of(1))
    result(actor, training)


def test_no_participant_claims_more_than_its_share_of_the_examples(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:2], allow_relays=True)
    tensors = {"weight": np.ones((2, 3, 2)), "bias": np.ones((3, 2)), "norm.num_batches_tracked": np.array(3, np.int64)}
    data, most = save(tensors, {"num_updates": str(2**60)}), 2**53 // 2
    for client in clients[:2]:
        with fails_with("INVALID_ARGUMENT", "NUM_EXAMPLES", f"0..{most}"):
            client.submit(training.training_id, data, num_examples=most + 1, num_updates=2**60)
        client.submit(training.training_id, data, num_examples=most, num_updates=2**60)
    result(actor, training)


def test_a_sum_of_updates_without_examples_counts_as_such_an_update(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:2], **SUM)
    for number, client in enumerate(clients[:2]):
        client.submit(training.training_id, file_of(number), num_examples=0)
    data = result(actor, training)[1]
    found = counts(data)
    assert found == {"num_examples": 0, "num_updates": 1}
    parent = begin(actor, clients[:1], allow_relays=True)
    clients[0].submit(parent.training_id, data, **found)
    assert result(actor, parent)[0] == download(actor, parent.model_id, version=0)[0].sha256


def test_the_file_of_a_sum_names_the_number_of_updates(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:1], **SUM, allow_relays=True)
    tensors = {"weight": np.ones((2, 3, 2)), "bias": np.ones((3, 2)), "norm.num_batches_tracked": np.array(3, np.int64)}

    def submit(metadata: dict[str, str] | None, num_updates: int = 7) -> None:
        clients[0].submit(training.training_id, save(tensors, metadata), num_examples=7, num_updates=num_updates)

    wrong = [{"num_updates": text} for text in ("x", "", "-5", "6", "07", "7 ", "10" * 30)]
    for metadata in (None, {"num_examples": "7"}, *wrong):
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "is 7; num_updates in the metadata of the file") as error:
            submit(metadata)
        assert list(error.details.fields) == ["spec.num_updates"]
    submit({"num_updates": str(2**64 - 1)}, 2**64 - 1)
    assert counts(result(actor, training)[1]) == {"num_examples": 7, "num_updates": 2**53}


def test_a_sum_is_no_model_to_train(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:1], **SUM)
    clients[0].submit(training.training_id, file_of(1))
    result(actor, training)
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "is a sum of updates") as error:
        actor.create(b"", model_id=training.model_id)
    assert list(error.details.fields) == ["spec.model_id"]
    again = actor.create(b"", model_id=training.model_id, model_version=0)
    assert again.model_id != training.model_id


def test_no_side_branch_of_a_training_with_relays(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:2], allow_relays=True)
    for number, client in enumerate(clients[:2]):
        client.submit(training.training_id, file_of(number))
    result(actor, training)
    request = audit_pb2.ReplayTrainingRequest(
        training_id=training.training_id, without_client_ids=[clients[0].user_id], request_id=new_id()
    )
    with fails_with("FAILED_PRECONDITION", "REPLAY_IMPOSSIBLE", "allows relays") as error:
        list(actor.audit.ReplayTraining(request))
    assert error.details.metadata["cause"] == "RELAYS"


def test_the_request_of_a_training_that_was_removed(actor: Person) -> None:
    # A relay goes by the field that is named.
    request_id = new_id()
    made = actor.create(save(MODEL), request_id=request_id)
    actor.trainings.RemoveTraining(training_pb2.RemoveTrainingRequest(training_id=made.training_id))
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "was removed") as error:
        actor.create(save(MODEL), request_id=request_id)
    assert list(error.details.fields) == ["request_id"]
