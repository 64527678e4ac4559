"""Aggregations that are divided into ranges, each of which another process may compute: the bits stay the same."""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedround_server.aggregators.clipping import FixedClipping
from fedround_server.aggregators.differential_privacy import DifferentialPrivacy
from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.aggregators.lora import LoraStack, LoraSvd
from fedround_server.aggregators.server_optimizer import Adam
from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.transport import Transport, UpdatePrecision
from fedround_server.engine import computation, source
from fedround_server.engine.cluster import tasks
from fedround_server.engine.computation import Step, divided
from fedround_server.engine.jobs import AggregationFailed, AggregationJob
from fedround_server.engine.source import Span
from unit import test_lora
from unit.aggregating import Rounds, Sent, Tensors, bits
from unit.paths import Paths
from unit.test_rules import COMBINATIONS, MODEL, UPDATES, name_of


class Elsewhere:
    """Computes each range as a worker of a cluster does: all that it is sent and returns is pickled.

    Attributes:
        tasks: How many ranges were computed, over all aggregations.
    """

    tasks = 0

    def __init__(self, files: Paths, job: AggregationJob) -> None:
        self._sent = pickle.dumps((files, job))

    def map(self, step: Step[Any], ranges: Sequence[Sequence[Span]]) -> Iterator[Any]:
        sent = pickle.dumps(step)
        for spans in ranges:
            type(self).tasks += 1
            files, job = pickle.loads(self._sent)
            made = tasks.run_range(files, job, pickle.loads(sent), pickle.loads(pickle.dumps(spans)))
            yield from pickle.loads(pickle.dumps(made))


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block has few numbers, and each range few blocks."""
    monkeypatch.setattr(source, "BLOCK", 8)
    monkeypatch.setattr(source, "SMALLEST_BLOCK", 8)
    monkeypatch.setattr(computation, "RANGE_NUMBERS", 8 * 12)
    # This process computes, too, and keeps its own number of threads.
    monkeypatch.setattr(tasks, "_prepare", lambda: None)
    # Random, and so not the same twice.
    for module in ("noise", "small_slots"):
        monkeypatch.setattr(f"fedround_server.engine.{module}.new_key", lambda: bytes(range(32)))


def two_rounds(training: Rounds, model: Tensors, updates: Sequence[Sent]) -> tuple[object, ...]:
    """The bits of two versions, and of the state that the second one was made with and has left."""
    first = training.aggregate(model, updates)
    second = training.aggregate(first, updates)
    slots = {slot: Path(blob.sha256).read_bytes() for slot, blob in training.state.slots.items()}
    return bits(first), bits(second), slots, training.state.steps, training.facts


@pytest.mark.parametrize("aggregation", COMBINATIONS, ids=name_of)
def test_ranges_have_the_same_bits_with_every_rule(tmp_path: Path, aggregation: Aggregation) -> None:
    before = Elsewhere.tasks
    here = two_rounds(Rounds(tmp_path, aggregation), MODEL, UPDATES)
    assert Elsewhere.tasks == before
    assert two_rounds(Rounds(tmp_path, aggregation, spread=Elsewhere), MODEL, UPDATES) == here
    assert Elsewhere.tasks > before + 4


@pytest.mark.parametrize("tree", [False, True])
def test_ranges_have_the_same_noise(tmp_path: Path, tree: bool) -> None:
    privacy = DifferentialPrivacy(1.0, tree=tree)
    aggregation = Aggregation(FedAvg(), clipping=FixedClipping(2.0), differential_privacy=privacy)
    model = {"w": torch.zeros(100), "v": torch.ones(30, dtype=torch.float64)}
    updates = [Sent({name: tensor + 0.1 * n for name, tensor in model.items()}) for n in range(3)]
    here, there = (
        two_rounds(Rounds(tmp_path, aggregation, expected=3.0, spread=spread), model, updates)
        for spread in (None, Elsewhere)
    )
    assert there == here


@pytest.mark.parametrize("rule", [LoraSvd(), LoraStack()], ids=lambda rule: rule.name)
def test_products_of_matrices_are_not_divided_and_what_is_beside_them_is(tmp_path: Path, rule: Any) -> None:
    updates = [test_lora.update(seed) for seed in (1, 2, 3)]
    model = {**test_lora.model(), "head": test_lora.draw(70, seed=4)}
    updates = [replace(one, tensors={**one.tensors, "head": test_lora.draw(70, seed=9)}) for one in updates]
    made = [
        bits(Rounds(tmp_path, Aggregation(rule), tensors=test_lora.ADAPTERS, spread=spread).aggregate(model, updates))
        for spread in (None, Elsewhere)
    ]
    assert made[0] == made[1]


def test_ranges_read_differences(tmp_path: Path) -> None:
    model = {"w": torch.linspace(-1, 1, 300), "b": torch.zeros(5)}
    differences = Transport(precision=UpdatePrecision.FLOAT16)
    updates = [Sent({name: (tensor * 0.01 * n).half() for name, tensor in model.items()}) for n in (1, 2)]
    made = [
        bits(Rounds(tmp_path, Aggregation(FedAvg()), transport=differences, spread=spread).aggregate(model, updates))
        for spread in (None, Elsewhere)
    ]
    assert made[0] == made[1]


def test_a_failure_in_a_range_is_the_failure_of_the_aggregation(tmp_path: Path) -> None:
    failing = Aggregation(FedAvg(), server_optimizer=Adam(learning_rate=1e39))
    with pytest.raises(AggregationFailed, match="tensor 'w'"):
        Rounds(tmp_path, failing, spread=Elsewhere).aggregate({"w": torch.zeros(90)}, [Sent({"w": torch.ones(90)})])


@given(st.lists(st.integers(1, 50)), st.integers(1, 100))
def test_ranges_have_all_spans_in_order_and_enough_numbers(lengths: list[int], numbers: int) -> None:
    spans = [Span(0, start, length) for start, length in enumerate(lengths)]
    ranges = divided(spans, numbers)
    assert [span for spans in ranges for span in spans] == spans
    for spans in ranges[:-1]:
        assert numbers <= sum(span.length for span in spans) < numbers + 50
