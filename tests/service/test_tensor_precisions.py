"""Updates whose tensors come in different precisions, by raw calls on both databases."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from safetensors.numpy import load, save

from calls import MODEL, Person, download, fails_with, kinds, model_file, new_id, until, update_chunks, update_spec
from fedround.v1 import aggregation_pb2, round_pb2, training_pb2
from servers import Server

FULL, FLOAT16 = aggregation_pb2.UPDATE_PRECISION_FULL, aggregation_pb2.UPDATE_PRECISION_FLOAT16
INT8 = aggregation_pb2.UPDATE_PRECISION_INT8
RULES = [
    {"tensors": "bias", "precision": FULL},
    {"tensors": "w*", "precision": INT8, "block_size": 16, "stochastic_rounding": True},
]


@pytest.fixture
def server(tmp_path: Path, database: str) -> Iterator[Server]:
    with Server(tmp_path / "data", database=database) as running:
        yield running


@pytest.fixture
def admin(server: Server) -> Iterator[Person]:
    with grpc.insecure_channel(server.address) as channel:
        yield Person(channel, server.admin_token)


def encoded(value: int, scale: float = 0.5, **changed: np.ndarray | None) -> bytes:
    """An update by RULES: integers of the weights times a scale, and the bias in full."""
    tensors = {
        "weight": np.full((2, 3), value, np.int8),
        "weight.int8_scales": np.array([scale], np.float32),
        "bias": np.full(3, 7.0),
        "count": np.array(5, np.int64),
        **changed,
    }
    return save({name: tensor for name, tensor in tensors.items() if tensor is not None})


def begin(actor: Person, clients: list[Person], **spec: Any) -> training_pb2.Training:
    ids = [client.user_id for client in clients]
    made = actor.create(model_file(5), client_ids=ids, **{"tensor_precisions": RULES, **spec})
    return actor.start(made.training_id)


def result(actor: Person, training: training_pb2.Training) -> dict[str, np.ndarray]:
    """Waits for the first version, and downloads it."""
    until(lambda: actor.get(training.training_id).model_version == 1)
    return load(download(actor, training.model_id)[1])


def test_a_round_takes_full_updates_and_updates_by_the_rules(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients)
    rules = [aggregation_pb2.TensorPrecision(**rule) for rule in RULES]
    assert list(training.spec.tensor_precisions) == rules
    assert list(actor.get(training.training_id).spec.tensor_precisions) == rules
    events = actor.subscribe(training.training_id)
    started = next(event.round_started for event in events if event.HasField("round_started"))
    assert list(started.tensor_precisions) == rules
    assert (started.update_precision, started.stochastic_rounding) == (FULL, False)
    clients[0].submit(training.training_id, encoded(3), num_examples=1)
    clients[1].submit(training.training_id, model_file(6), num_examples=2)
    clients[2].submit(training.training_id, encoded(-127, 0.25), num_examples=5)
    assert kinds(list(events))[-1] == "training_finished"
    after = load(download(actor, training.model_id)[1])
    assert {name: tensor.dtype for name, tensor in after.items()} == {n: t.dtype for n, t in MODEL.items()}
    weight = np.float32((1 * (5 + 3 * 0.5) + 2 * 6 + 5 * (5 - 127 * 0.25)) / 8)
    assert np.array_equal(after["weight"], np.full((2, 3), weight))
    assert np.array_equal(after["bias"], np.full(3, (1 * 7 + 2 * 6 + 5 * 7) / 8))


def test_all_tensors_may_be_in_int8(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:1], tensor_precisions=[], update_precision=INT8, stochastic_rounding=True)
    assert (training.spec.update_precision, training.spec.stochastic_rounding) == (INT8, True)
    data = encoded(2, bias=np.full(3, 4, np.int8), **{"bias.int8_scales": np.array([2], np.float32)})
    clients[0].submit(training.training_id, data)
    after = result(actor, training)
    assert after["weight"].tolist() == [[6] * 3] * 2
    assert after["bias"].tolist() == [13] * 3


def test_updates_that_do_not_fit_the_rules_are_rejected(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:1])
    for changed, reason, words in (
        ({"weight.int8_scales": np.ones(2, np.float32)}, "UPDATE_MISMATCH", "'weight.int8_scales' is F32[2], and"),
        ({"weight.int8_scales": np.ones(1)}, "UPDATE_MISMATCH", "is F64[1], and the round asks for F32[1]"),
        ({"bias": np.zeros(3, np.float16)}, "UPDATE_MISMATCH", "'bias' is F16[3], and the round asks for F64[3]"),
        ({"weight": np.zeros((3, 2), np.int8)}, "UPDATE_MISMATCH", "I8[3, 2], and the round asks for I8[2, 3]"),
        ({"weight.int8_scales": None}, "TENSORS_MISMATCH", "lacks tensors that the round asks for: 'weight.int8"),
        (
            {"weight.int8_scales": None, "weight.scale": np.ones(1, np.float32)},
            "TENSORS_MISMATCH",
            "does not ask for: 'weight.scale'",
        ),
        ({"bias.int8_scales": np.ones(1, np.float32)}, "TENSORS_MISMATCH", "does not ask for: 'bias.int8_scales'"),
        ({"weight.int8_scales": np.array([np.nan], np.float32)}, "UPDATE_NOT_FINITE", "'weight.int8_scales' contains"),
        ({"weight.int8_scales": np.array([-1], np.float32)}, "UPDATE_MISMATCH", "'weight.int8_scales' has a negative"),
        ({"weight": np.full((2, 3), -128, np.int8)}, "UPDATE_MISMATCH", "'weight' has the value -128"),
        ({"bias": np.full(3, np.inf)}, "UPDATE_NOT_FINITE", "'bias' contains NaN or Inf"),
    ):
        with fails_with("INVALID_ARGUMENT", reason, words):
            clients[0].submit(training.training_id, encoded(0, **changed))
    assert actor.get(training.training_id).updates_arrived == 0
    clients[0].submit(training.training_id, encoded(1))


def test_the_bound_is_on_the_differences(actor: Person, clients: list[Person]) -> None:
    # Six weights with a difference of 3 * 2, and three of the bias with 7 - 5.
    training = begin(actor, clients[:1], max_update_norm=15.1)
    with fails_with("INVALID_ARGUMENT", "UPDATE_NORM", "allows 15.1:"):
        clients[0].submit(training.training_id, encoded(3, 2.01))
    clients[0].submit(training.training_id, encoded(3, 2))


def test_rules_apply_to_the_trained_part_and_its_deltas(actor: Person, clients: list[Person]) -> None:
    selection = {"trainable": ["weight"]}
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "'bias': no tensor of the model matches") as call:
        begin(actor, clients[:1], tensors=selection)
    assert list(call.details.fields) == ["spec.tensor_precisions[0].tensors"]
    training = begin(
        actor, clients[:1], tensors=selection, tensor_precisions=RULES[1:], target_num_updates=2, max_update_norm=9
    )
    events = actor.subscribe(training.training_id)
    for number in range(2):
        clients[0].submit(training.training_id, encoded(1 + number, bias=None, count=None), number)
        assert any(event.HasField("round_closed") for event in events)
    after = load(download(actor, training.model_id)[1])
    assert after["weight"].tolist() == [[6.5] * 3] * 2
    assert after["bias"].tolist() == [5] * 3


def test_an_upload_in_parts_is_checked_as_a_whole(actor: Person, clients: list[Person], server: Server) -> None:
    training = begin(actor, clients[:1])
    data, upload_id = encoded(4), new_id()
    for offset, end in ((0, 100), (100, len(data) - 1), (len(data) - 1, len(data))):
        wanted = update_spec(training.training_id, data, upload_id=upload_id, offset=offset)
        messages = [round_pb2.SubmitUpdateRequest(spec=wanted), *update_chunks(data[offset:end])]
        if end < len(data):
            with fails_with("DATA_LOSS", "UPLOAD_INCOMPLETE"):
                clients[0].rounds.SubmitUpdate(iter(messages))
        else:
            clients[0].rounds.SubmitUpdate(iter(messages))
    assert result(actor, training)["weight"].tolist() == [[7] * 3] * 2


def test_a_restart_keeps_the_rules_and_the_updates(actor: Person, clients: list[Person], server: Server) -> None:
    training = begin(actor, clients[:2])
    clients[0].submit(training.training_id, encoded(4))
    before = MessageToDict(actor.get(training.training_id).spec)
    server.kill()
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        again, other = Person(channel, actor.token), Person(channel, clients[1].token)
        assert MessageToDict(again.get(training.training_id).spec) == before
        other.submit(training.training_id, encoded(2))
        assert result(again, training)["weight"].tolist() == [[6.5] * 3] * 2


def test_rules_out_of_range_are_rejected(actor: Person) -> None:
    first = "spec.tensor_precisions[0]"
    fed_dc: dict[str, Any] = {"aggregation": {"fed_dc": {}}}
    rejected: list[tuple[list[dict[str, Any]], str]] = [
        ([{"precision": INT8}], f"{first}.tensors"),
        ([{"tensors": "g" * 513, "precision": INT8}], f"{first}.tensors"),
        ([RULES[0], {"tensors": "bia", "precision": FLOAT16}], "spec.tensor_precisions[1].tensors"),
        ([{"tensors": "*"}], f"{first}.precision"),
        ([{"tensors": "*", "precision": 9}], f"{first}.precision"),
        ([{"tensors": "*", "precision": FLOAT16, "block_size": 256}], f"{first}.block_size"),
        ([RULES[0]] * 101, "spec.tensor_precisions"),
    ]
    for size in (1, 8, 100, 131_072):
        rejected.append(([{"tensors": "*", "precision": INT8, "block_size": size}], f"{first}.block_size"))
    specs = [({"tensor_precisions": rules}, field) for rules, field in rejected]
    specs.append(({"tensor_precisions": RULES, **fed_dc}, "spec.tensor_precisions"))
    specs.append(({"update_precision": INT8, **fed_dc}, "spec.update_precision"))
    for changed, field in specs:
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", field) as call:
            actor.create(**changed)
        assert list(call.details.fields) == [field]
    assert len(actor.trainings.GetTrainings(training_pb2.GetTrainingsRequest()).trainings) == 0


def test_a_model_whose_names_are_those_of_scales_is_rejected(actor: Person) -> None:
    data = save({"w": np.zeros(2, np.float32), "w.int8_scales": np.zeros(1, np.float32)})
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "'w.int8_scales', which is a tensor of the model") as call:
        actor.create(data, update_precision=INT8)
    assert list(call.details.fields) == ["spec.update_precision"]
    actor.create(data, update_precision=FLOAT16)


def test_swag_and_evaluation_rounds_are_as_ever(actor: Person, clients: list[Person]) -> None:
    training = begin(actor, clients[:1], uncertainty={"swag": {}}, metric_names=["loss"])
    events = actor.subscribe(training.training_id)
    clients[0].submit(training.training_id, encoded(1))
    started = next(e.round_started for e in events if e.HasField("round_started") and e.round_started.round == 1)
    assert (started.update_precision, len(started.tensor_precisions)) == (FULL, 0)
