"""Updates that come as differences in half precision, by raw calls."""

from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from calls import MODEL, Person, download, fails_with, kinds, model_file
from fedround.v1 import aggregation_pb2, training_pb2

FLOAT16 = aggregation_pb2.UPDATE_PRECISION_FLOAT16


def narrow_file(value: float, **changed: np.ndarray) -> bytes:
    """An update with the difference of each wide floating tensor."""
    tensors = {name: tensor for name, tensor in MODEL.items() if tensor.dtype.kind != "f"}
    tensors |= {
        name: np.full(tensor.shape, value, np.float16) for name, tensor in MODEL.items() if tensor.dtype.kind == "f"
    }
    return save({**tensors, **changed})


def begin(actor: Person, clients: list[Person], **spec: Any) -> Any:
    ids = [client.user_id for client in clients]
    made = actor.create(model_file(5), client_ids=ids, **{"update_precision": FLOAT16, **spec})
    assert made.spec.update_precision == spec.get("update_precision", FLOAT16)
    return actor.start(made.training_id)


def test_differences_and_full_updates_count_alike(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients)
    events = actor.subscribe(training.training_id)
    started = next(event.round_started for event in events if event.HasField("round_started"))
    assert started.update_precision == FLOAT16
    receipt = clients[0].submit(training.training_id, narrow_file(1.5), num_examples=1)
    assert clients[0].submit(training.training_id, narrow_file(1.5), num_examples=1) == receipt
    clients[1].submit(training.training_id, model_file(6), num_examples=2)
    clients[2].submit(training.training_id, narrow_file(-2), num_examples=5)
    assert kinds(list(events))[-1] == "training_finished"
    after = load(download(actor, training.model_id)[1])
    expected = (1 * 6.5 + 2 * 6 + 5 * 3) / 8
    assert {name: tensor.dtype for name, tensor in after.items()} == {n: t.dtype for n, t in MODEL.items()}
    for name in ("weight", "bias"):
        np.testing.assert_array_equal(after[name], np.full(MODEL[name].shape, expected, MODEL[name].dtype))


def test_what_is_no_update_of_such_a_round_is_rejected(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:1])
    for changed, words in (
        (
            {"bias": np.zeros(3)},
            "'bias' is F64[3], and the round asks for F16[3]: differences of all F32 and F64 tensors",
        ),
        ({"count": np.array(0, np.int32)}, "'count' is I32[], and the round asks for I64[]"),
        ({"weight": np.zeros((3, 2), np.float16)}, "'weight' is F16[3, 2], and the round asks for F16[2, 3]"),
    ):
        with fails_with("INVALID_ARGUMENT", "UPDATE_MISMATCH", words):
            clients[0].submit(training.training_id, narrow_file(0, **changed))
    with fails_with("INVALID_ARGUMENT", "UPDATE_NOT_FINITE", "'bias' contains NaN or Inf"):
        clients[0].submit(training.training_id, narrow_file(0, bias=np.array([0, np.nan, 0], np.float16)))
    assert actor.get(training.training_id).updates_arrived == 0


@pytest.mark.parametrize("precision", ["UNSPECIFIED", "FULL", "BFLOAT16"])
def test_other_trainings_take_no_such_update(actor: Person, clients: list[Person], precision: str) -> None:
    value = aggregation_pb2.UpdatePrecision.Value(f"UPDATE_PRECISION_{precision}")
    ids = [clients[0].user_id]
    made = actor.create(client_ids=ids, update_precision=value)
    assert made.spec.update_precision == (value or aggregation_pb2.UPDATE_PRECISION_FULL)
    actor.start(made.training_id)
    with fails_with("INVALID_ARGUMENT", "UPDATE_MISMATCH", "is F16["):
        clients[0].submit(made.training_id, narrow_file(1))
    clients[0].submit(made.training_id, model_file(1))


def test_the_bound_is_on_the_differences(actor: Person, clients: list[Person]) -> None:
    # Nine floating elements.
    training = begin(actor, clients[:2], max_update_norm=3)
    with fails_with("INVALID_ARGUMENT", "UPDATE_NORM", "6 away", "allows 3:"):
        clients[0].submit(training.training_id, narrow_file(2))
    clients[0].submit(training.training_id, narrow_file(-1))
    clients[1].submit(training.training_id, model_file(6))


def test_rounds_that_do_not_train_are_as_ever(actor: Person, clients: list[Person]) -> None:
    training = begin(
        actor,
        clients[:1],
        uncertainty={"swag": {}},
        metric_names=["loss"],
        evaluation=training_pb2.EVALUATION_EVERY_ROUND,
    )
    events = actor.subscribe(training.training_id)
    clients[0].submit(training.training_id, narrow_file(1))
    started = next(e.round_started for e in events if e.HasField("round_started") and e.round_started.round == 1)
    assert started.update_precision == aggregation_pb2.UPDATE_PRECISION_FULL


def test_a_chain_takes_no_differences(actor: Person) -> None:
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "does not go with fed_dc", "send them in full") as call:
        actor.create(update_precision=FLOAT16, aggregation={"fed_dc": {}})
    assert list(call.details.fields) == ["spec.update_precision"]
