"""Several threads compute the blocks of an aggregation, and what they make is the same."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedround_server.aggregators.centered_clipping import CenteredClipping
from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.aggregators.geometric_median import GeometricMedian
from fedround_server.aggregators.median import Median
from fedround_server.aggregators.server_optimizer import Adam
from fedround_server.domain.aggregation import Aggregation
from fedround_server.engine import source
from fedround_server.engine.aggregation import Aggregated, aggregate
from fedround_server.engine.jobs import AggregationFailed, AggregationJob
from fedround_server.engine.pool import computing
from unit.paths import Paths, at
from unit.safetensors_files import write

AGGREGATIONS = {
    "mean": Aggregation(FedAvg()),
    "products": Aggregation(GeometricMedian()),
    "kept aggregate": Aggregation(CenteredClipping()),
    "columns": Aggregation(Median()),
    "optimizer": Aggregation(FedAvg(), server_optimizer=Adam()),
}


def run(folder: Path, aggregation: Aggregation, threads: int) -> Aggregated:
    rng, paths = np.random.default_rng(5), []
    for number in range(5):
        tensors = {name: rng.standard_normal(3000).astype(kind) for name, kind in (("a", "f4"), ("b", "f8"))}
        paths.append(folder / f"{number}.safetensors")
        paths[-1].write_bytes(write(tensors))
    model, *updates = map(at, paths)
    job = AggregationJob(model, tuple(updates), (1, 2, 3, 4), aggregation, user_ids=("p", "q", "r", "s"))
    slots = {slot: folder / f"{threads}-{slot.replace('/', '-')}" for slot in aggregation.slots}
    return aggregate(Paths(folder), job, folder / f"made-{threads}", slots, threads)


@pytest.mark.parametrize("aggregation", AGGREGATIONS.values(), ids=AGGREGATIONS.keys())
def test_the_bits_do_not_depend_on_the_number_of_threads(
    tmp_path: Path, aggregation: Aggregation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "BLOCK", 100)
    monkeypatch.setattr(source, "SMALLEST_BLOCK", 100)
    assert run(tmp_path, aggregation, 1) == run(tmp_path, aggregation, 3)


def test_a_failure_in_a_thread_is_the_failure_of_the_aggregation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "BLOCK", 100)
    monkeypatch.setattr(source, "SMALLEST_BLOCK", 100)
    adding = Aggregation(FedAvg(), server_optimizer=Adam(learning_rate=1e39))
    with pytest.raises(AggregationFailed, match="tensor 'a'"):
        run(tmp_path, adding, 3)


def test_results_come_in_order_and_few_items_wait() -> None:
    taken: list[int] = []
    first = threading.Event()

    def items() -> Iterator[int]:
        for item in range(1, 101):
            taken.append(item)
            yield item

    def late(item: int) -> int:
        # The first item ends after the second one.
        if item == 1:
            assert first.wait(60)
        elif item == 2:
            first.set()
        return item

    with computing(2) as pool:
        results = pool.map(late, items())
        assert list(itertools.islice(results, 3)) == [1, 2, 3]
        assert len(taken) <= 5
        assert list(results) == list(range(4, 101))
