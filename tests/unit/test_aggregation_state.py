"""The state of aggregations, as the engine reads and writes it, and what it finds out about updates."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from fedround_server.aggregators.centered_clipping import CenteredClipping
from fedround_server.aggregators.clipping import FixedClipping
from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.aggregators.krum import Krum
from fedround_server.aggregators.median import Median
from fedround_server.aggregators.server_optimizer import Adam
from fedround_server.domain.aggregation import NO_STATE, Aggregation, AggregationState, UpdateFacts
from fedround_server.engine.aggregation import Aggregated, aggregate
from fedround_server.engine.jobs import AggregationJob
from unit.paths import Paths, at
from unit.safetensors_files import write

Tensors = dict[str, np.ndarray]
ADAM = Aggregation(FedAvg(), server_optimizer=Adam(bias_correction=True))
CENTERED = Aggregation(CenteredClipping(tau=1.0), server_optimizer=Adam())


def vector(*values: float, dtype: Any = np.float32) -> Tensors:
    return {"w": np.array(values, dtype)}


class Rounds:
    """Aggregates one round after the other in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def file(self, tensors: Tensors) -> Path:
        self._count += 1
        path = self._folder / f"{self._count}.safetensors"
        path.write_bytes(write(tensors))
        return path

    def run(
        self,
        aggregation: Aggregation,
        model: Tensors,
        updates: list[Tensors],
        weights: list[int] | None = None,
        state: AggregationState = NO_STATE,
    ) -> tuple[Tensors, AggregationState, Aggregated]:
        self._count += 1
        target, files = self._folder / f"result {self._count}", [at(self.file(update)) for update in updates]
        targets = {slot: self._folder / f"{slot.replace('/', ' ')} {self._count}" for slot in aggregation.slots}
        job = AggregationJob(
            at(self.file(model)), tuple(files), tuple(weights or [1] * len(updates)), aggregation, state=state
        )
        made = aggregate(Paths(self._folder), job, target, targets)
        slots = {slot: at(path) for slot, path in targets.items()}
        assert {slot: hashlib.sha256(path.read_bytes()).hexdigest() for slot, path in targets.items()} == {
            slot: blob.sha256 for slot, blob in made.slots.items()
        }
        return safetensors.numpy.load_file(target), AggregationState(slots, made.steps), made


@pytest.fixture
def rounds(tmp_path: Path) -> Rounds:
    return Rounds(tmp_path)


def contents(state: AggregationState) -> dict[str, bytes]:
    return {slot: Path(blob.sha256).read_bytes() for slot, blob in state.slots.items()}


@pytest.mark.parametrize("aggregation", [ADAM, CENTERED], ids=["adam", "centered clipping"])
def test_a_round_in_which_nothing_counts_changes_neither_the_model_nor_the_state(
    rounds: Rounds, aggregation: Aggregation
) -> None:
    model = vector(-0.0, 1.5)
    _, state, _ = rounds.run(aggregation, model, [vector(1, 2), vector(3, 4)])
    assert set(state.steps.values()) == {1}
    same, after, made = rounds.run(aggregation, model, [vector(7, 7)], [0], state)
    assert same["w"].tobytes() == model["w"].tobytes()
    assert (contents(after), after.steps) == (contents(state), state.steps)
    assert made.report == (UpdateFacts(share=0.0),)


def test_a_first_round_in_which_nothing_counts_makes_no_step(rounds: Rounds) -> None:
    model, updates = vector(0, 1), [vector(1, 2), vector(3, 4)]
    _, empty, _ = rounds.run(ADAM, model, [vector(7, 7)], [0])
    assert set(empty.steps.values()) == {0}
    later, after, _ = rounds.run(ADAM, model, updates, None, empty)
    first, state, _ = rounds.run(ADAM, model, updates)
    assert later["w"].tobytes() == first["w"].tobytes()
    assert (contents(after), after.steps) == (contents(state), state.steps)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("aggregation", [ADAM, CENTERED], ids=["adam", "centered clipping"])
def test_a_state_of_any_type_is_read_again(rounds: Rounds, aggregation: Aggregation, dtype: Any) -> None:
    model, state = vector(0, 1, dtype=dtype), NO_STATE
    for number in range(1, 4):
        updates = [vector(number, 2, dtype=dtype), vector(3, number, dtype=dtype)]
        model, state, _ = rounds.run(aggregation, model, updates, None, state)
        assert set(state.steps.values()) == {number}
    for slot, blob in state.slots.items():
        kept = safetensors.numpy.load_file(blob.sha256)["w"]
        assert kept.dtype == (np.float64 if dtype == np.float64 else np.float32)
        assert kept.all(), slot


def _without(state: AggregationState, slot: str) -> AggregationState:
    return AggregationState({name: blob for name, blob in state.slots.items() if name != slot}, state.steps)


def _with_other_tensors(rounds: Rounds, state: AggregationState, slot: str) -> AggregationState:
    return AggregationState({**state.slots, slot: at(rounds.file(vector(1, 2, 3)))}, state.steps)


@pytest.mark.parametrize("kind", ["missing", "of other tensors"])
def test_an_optimizer_without_all_of_its_state_begins_anew(rounds: Rounds, kind: str) -> None:
    model, updates = vector(0, 1), [vector(1, 2), vector(3, 4)]
    first, fresh, _ = rounds.run(ADAM, model, updates)
    _, state, _ = rounds.run(ADAM, model, updates, None, fresh)
    assert set(state.steps.values()) == {2}
    broken = _without(state, "adam/v") if kind == "missing" else _with_other_tensors(rounds, state, "adam/v")
    again, after, _ = rounds.run(ADAM, model, updates, None, broken)
    assert again["w"].tobytes() == first["w"].tobytes()
    assert (contents(after), after.steps) == (contents(fresh), fresh.steps)


def test_each_stage_has_steps_of_its_own(rounds: Rounds) -> None:
    model, updates = vector(0, 1), [vector(1, 2), vector(3, 4)]
    _, state, _ = rounds.run(Aggregation(CenteredClipping(tau=1.0)), model, updates)
    _, after, _ = rounds.run(CENTERED, model, updates, None, state)
    assert after.steps == {"centered_clipping/aggregate": 2, "adam/m": 1, "adam/v": 1}


def test_a_state_that_its_type_cannot_hold_is_the_largest_number(rounds: Rounds) -> None:
    _, state, _ = rounds.run(ADAM, vector(0, 0), [vector(1e30, 1)])
    assert safetensors.numpy.load_file(state.slots["adam/v"].sha256)["w"][0] == np.finfo(np.float32).max


@pytest.mark.parametrize("aggregation", [ADAM, CENTERED], ids=["adam", "centered clipping"])
def test_a_model_without_numbers_to_optimize_has_an_empty_state(rounds: Rounds, aggregation: Aggregation) -> None:
    model = {"steps": np.array([1])}
    for state in (NO_STATE, rounds.run(aggregation, model, [{"steps": np.array([2])}])[1]):
        made, _, _ = rounds.run(aggregation, model, [{"steps": np.array([3])}], state=state)
        assert made["steps"].tolist() == [3]


@pytest.mark.parametrize("aggregation", [ADAM, CENTERED], ids=["adam", "centered clipping"])
def test_a_state_goes_on_beside_adjacent_buffers(rounds: Rounds, aggregation: Aggregation) -> None:
    """A layer of batch normalization has two, of which the state has nothing."""
    buffers = {"bn.running_mean": np.zeros(2, np.float32), "bn.running_var": np.ones(2, np.float32)}
    state = NO_STATE
    for number in (1, 2):
        updates = [{**vector(value), **buffers} for value in (1.0, 2.0)]
        made, state, _ = rounds.run(aggregation, {**vector(0), **buffers}, updates, state=state)
        assert set(state.steps.values()) == {number}
        assert made["bn.running_var"].tolist() == [1, 1]
    assert safetensors.numpy.load_file(next(iter(state.slots.values())).sha256).keys() == {"w"}


def test_rules_that_select_say_what_they_selected(rounds: Rounds) -> None:
    updates = [vector(0, 1), vector(0, 1.5), vector(0, 1.25), vector(0, 1.125), vector(50, 50)]
    *_, made = rounds.run(Aggregation(Krum(f=1)), vector(0, 0), [*updates, vector(9, 9)], [1, 1, 1, 1, 1, 0])
    assert [one.selected for one in made.report].count(True) == 1
    assert [one.selected for one in made.report[4:]] == [False, False]
    assert [one.share != 0 for one in made.report] == [one.selected for one in made.report]
    assert made.report[4].distance_rank == 5
    *_, made = rounds.run(Aggregation(Median()), vector(0, 0), updates)
    assert made.report == (UpdateFacts(),) * 5


def test_norms_and_scales_are_those_of_clipping(rounds: Rounds) -> None:
    aggregation = Aggregation(FedAvg(), clipping=FixedClipping(5.0))
    *_, made = rounds.run(aggregation, vector(1, 1), [vector(1, 4), vector(1, 11)], [1, 3])
    assert [(one.norm, one.scale, one.share) for one in made.report] == [(3.0, 1.0, 0.25), (10.0, 0.5, 0.375)]
    assert [one.cosine for one in made.report] == [1.0, 1.0]
