"""Relays: whoever adds the updates first, the next version has the same bits."""

import resource
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch

from fedround_server.aggregators import STAGES
from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.aggregators.fed_prox import FedProx
from fedround_server.aggregators.partial_sum import PartialSum
from fedround_server.aggregators.server_optimizer import Adam, Sgd
from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.tensor_selection import TensorSelection
from fedround_server.domain.transport import Transport, UpdatePrecision
from fedround_server.engine.jobs import AggregationFailed
from unit.aggregating import Rounds, Sent, Tensors, bits
from unit.test_rules import MODEL, UPDATES

SUM = Aggregation(PartialSum())
FLOATING = {name: one for name, one in MODEL.items() if one.is_floating_point() or one.is_complex()}
COUNTED = {**FLOATING, "norm.num_batches_tracked": MODEL["norm.num_batches_tracked"]}


def only(tensors: Tensors) -> Tensors:
    return {name: one for name, one in tensors.items() if name in COUNTED}


SENT = [replace(update, tensors=only(update.tensors)) for update in UPDATES]


def added(folder: Path, updates: list[Sent], model: Tensors = COUNTED, **more: object) -> Sent:
    """What a relay sends for some updates."""
    rounds = Rounds(folder, SUM, relays=True, **more)  # type: ignore[arg-type]
    tensors = rounds.aggregate(model, updates)
    with safetensors.safe_open(rounds.made, "pt") as file:
        metadata = file.metadata()
    assert int(metadata["num_examples"]) == sum(update.weight for update in updates)
    return Sent(tensors, int(metadata["num_examples"]), metadata=metadata)


@pytest.mark.parametrize(
    "aggregation",
    [
        Aggregation(FedAvg()),
        Aggregation(FedProx(0.1)),
        *(Aggregation(FedAvg(), server_optimizer=one) for one in (Sgd(momentum=0.9), Adam(0.5))),
    ],
    ids=str,
)
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_nested_sums_make_the_same_version(tmp_path: Path, aggregation: Aggregation, levels: int) -> None:
    flat, nested = (Rounds(tmp_path, aggregation, relays=True) for _ in range(2))
    model: Tensors = COUNTED
    for _ in range(2):
        sent = SENT
        for level in range(levels):
            # Some are added, some are not, and one relay has a single participant.
            sent = (
                [added(tmp_path, sent[:2], model), *sent[2:3], added(tmp_path, sent[3:4], model), *sent[4:]]
                if level < 2
                else [added(tmp_path, sent, model)]
            )
        expected, found = flat.aggregate(model, SENT), nested.aggregate(model, sent)
        assert bits(found) == bits(expected)
        assert {name: bits(flat.slot(name)) for name in flat.state.slots} == {
            name: bits(nested.slot(name)) for name in nested.state.slots
        }
        model = found


def test_an_optimizer_without_relays_differs_by_rounding_only(tmp_path: Path) -> None:
    aggregation = Aggregation(FedAvg(), server_optimizer=Sgd())
    with_relays = Rounds(tmp_path, aggregation, relays=True).aggregate(COUNTED, SENT)
    without = Rounds(tmp_path, aggregation).aggregate(COUNTED, SENT)
    for name, one in with_relays.items():
        torch.testing.assert_close(one, without[name])


def test_differences_and_a_selection_are_added_too(tmp_path: Path) -> None:
    transport = Transport(precision=UpdatePrecision.FLOAT16)
    tensors = TensorSelection(trainable=("small.*",))
    updates = [
        replace(
            update,
            tensors={
                name: (one - MODEL[name]).half() for name, one in update.tensors.items() if name.startswith("small.")
            },
        )
        for update in SENT
    ]
    one, rest = updates[:3], updates[3:]
    first = added(tmp_path, one, transport=transport, tensors=tensors)
    assert {name.split(".")[0] for name in first.tensors} == {"small"}
    flat, nested = (
        Rounds(tmp_path, Aggregation(FedAvg()), relays=True, transport=transport, tensors=tensors).aggregate(
            COUNTED, sent
        )
        for sent in (updates, [first, *rest])
    )
    assert bits(nested) == bits(flat)


def test_the_number_of_updates_is_counted_through_all_levels(tmp_path: Path) -> None:
    first = added(tmp_path, SENT[:3])
    second = added(tmp_path, [first, *SENT[3:5]])
    assert (first.metadata["num_updates"], second.metadata["num_updates"]) == ("3", "5")


def test_a_relay_without_examples_has_no_part(tmp_path: Path) -> None:
    nothing = added(tmp_path, [replace(SENT[0], weight=0)])
    assert (nothing.weight, nothing.metadata["num_updates"]) == (0, "1")
    rounds = Rounds(tmp_path, Aggregation(FedAvg()), relays=True)
    assert bits(rounds.aggregate(COUNTED, [nothing, *SENT])) == bits(rounds.aggregate(COUNTED, SENT))


def test_non_finite_numbers_of_the_model_stay(tmp_path: Path) -> None:
    model = {"w": torch.tensor([1.0, float("-inf"), float("nan")])}
    updates = [Sent({"w": torch.tensor([value, float("-inf"), float("nan")])}, 2) for value in (2.0, 5.0)]
    one = added(tmp_path, updates, model, keep_non_finite=True)
    assert torch.isfinite(one.tensors["w"]).all()
    rounds = Rounds(tmp_path, Aggregation(FedAvg()), relays=True, keep_non_finite=True)
    assert bits(rounds.aggregate(model, [one])) == bits({"w": torch.tensor([3.5, float("-inf"), float("nan")])})


def test_more_components_are_taken_where_they_are_needed(tmp_path: Path) -> None:
    model = {"w": torch.zeros(2, dtype=torch.float64)}
    for exponents, components in (((0, 10), 2), ((0, 200, 400), 4), (range(0, 700, 100), 8)):
        updates = [Sent({"w": torch.tensor([2.0**one, 1.0], dtype=torch.float64)}) for one in exponents]
        assert added(tmp_path, updates, model).tensors["w"].shape == (2, components)
    updates = [Sent({"w": torch.tensor([2.0**one, 1.0], dtype=torch.float64)}) for one in range(0, 900, 90)]
    with pytest.raises(AggregationFailed, match="more than 8 float64 numbers"):
        added(tmp_path, updates, model)
    with pytest.raises(AggregationFailed, match=r"tensor 'w' has numbers of 2\^960 or more"):
        added(tmp_path, [Sent({"w": torch.tensor([0.0, 2.0**970], dtype=torch.float64)})], model)


def test_a_sum_beyond_what_updates_can_add_up_to_does_not_fail_the_round(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path, Aggregation(FedAvg()), relays=True)
    wrong = Sent({"w": torch.tensor([[1e300, 0.0], [4.0, 0.0]], dtype=torch.float64)}, 2)
    found = rounds.aggregate({"w": torch.zeros(2)}, [wrong])
    assert found["w"].tolist() == [torch.finfo(torch.float32).max, 2.0]
    largest = torch.finfo(torch.float64).max
    wrong = Sent({"w": torch.tensor([[-largest, -largest]], dtype=torch.float64)}, 2)
    found = rounds.aggregate({"w": torch.zeros(1, dtype=torch.float64)}, [wrong])
    assert found["w"].tolist() == [-largest / 2]


def test_too_many_examples_fail_the_round(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path, Aggregation(FedAvg()), relays=True)
    updates = [Sent({"w": torch.tensor([[value, 0.0]], dtype=torch.float64)}, 2**53) for value in (1.0, 2.0)]
    with pytest.raises(AggregationFailed, match=r"may have 2\^53"):
        rounds.aggregate({"w": torch.zeros(1)}, updates)


def test_only_these_rules_can_be_nested() -> None:
    assert {name for name, rule in STAGES["algorithm"].items() if rule.nests} == {"fed_avg", "fed_prox", "partial_sum"}


def test_more_small_updates_are_added_than_files_may_be_open(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        found = added(
            tmp_path, [Sent({"w": torch.tensor([float(number)])}) for number in range(300)], {"w": torch.zeros(1)}
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found.tensors["w"].tolist() == [[sum(range(300)), 0.0]]
