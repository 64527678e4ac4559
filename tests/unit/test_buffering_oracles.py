"""FedBuff and FedAsync against numpy, written from the papers."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedround_server.aggregators.buffering import FedAsync, FedBuff
from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.aggregators.median import Median
from fedround_server.aggregators.server_optimizer import Sgd
from fedround_server.coordinator.aggregation import job_of
from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.kind import Computation
from fedround_server.domain.rounds.round import Round, RoundState
from fedround_server.domain.transport import FULL_TRANSPORT, Transport, UpdatePrecision
from fedround_server.domain.update import Update
from fedround_server.engine.aggregation import aggregate
from fedround_server.engine.format.tensors import TensorFile
from fedround_server.store.queries.aggregation_task import AggregationTask
from unit.aggregating import Rounds
from unit.oracles import check
from unit.paths import Paths

SIZE = 400
NOW = datetime(2026, 1, 1, tzinfo=UTC)
HALF = Transport((), UpdatePrecision.FLOAT16, False)


def version(
    folder: Path,
    aggregation: Aggregation,
    versions: list[np.ndarray],
    updates: list[tuple[int, np.ndarray]],
    transport: Transport = FULL_TRANSPORT,
    weights: tuple[int, ...] = (),
    name: str = "w",
) -> np.ndarray:
    """Returns the version that follows the last one, of updates as (base version, what is sent)."""
    rounds = Rounds(folder, aggregation)
    files = [rounds.write({name: torch.tensor(one)}) for one in versions]
    latest = len(versions) - 1
    sent = tuple(
        Update("", "", latest, f"site {number}", rounds.write({name: torch.tensor(tensor)}), weight, NOW,
               base_version=base)
        for number, ((base, tensor), weight) in enumerate(zip(updates, weights or (1,) * len(updates), strict=True))
    )  # fmt: skip
    row = Round("", latest, KINDS["TRAIN"], RoundState.AGGREGATING, 1, latest, len(sent), len(sent), NOW, None, None)
    bases = {base: files[base] for base, _ in updates if base != latest}
    job = job_of(AggregationTask(row, files[latest], Computation(aggregation, transport), sent, bases=bases))
    target = folder / "made"
    slots = {slot: folder / slot.replace("/", " ") for slot in aggregation.slots}
    aggregate(Paths(folder), job, target, slots)
    with TensorFile(target) as file:
        return np.asarray(file.tensor(name).numpy())


def history(seed: int, count: int, dtype: Any = np.float64) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(SIZE).astype(dtype) for _ in range(count)]


@pytest.mark.parametrize("exponent", [0.5, 0.0, 2.0])
def test_fed_buff(tmp_path: Path, record_property: Any, exponent: float) -> None:
    # Algorithm 1: x := x + (1/K) sum of s(tau) (w - x_base); the weights of examples are FedAvg's.
    versions, local = history(1, 5), history(2, 4)
    bases, weights = (4, 1, 3, 0), (1, 2, 3, 4)
    buffering = Aggregation(FedAvg(), buffering=FedBuff(4, exponent=exponent))
    found = version(tmp_path, buffering, versions, list(zip(bases, local, strict=True)), weights=weights)
    expected = versions[-1].copy()
    for base, one, weight in zip(bases, local, weights, strict=True):
        expected += weight / sum(weights) * (1 + 4 - base) ** -exponent * (one - versions[base])
    check(f"fed_buff {exponent}", found, expected, record_property)


def test_fed_buff_with_a_server_learning_rate(tmp_path: Path, record_property: Any) -> None:
    versions, local = history(1, 3), history(2, 2)
    stages = Aggregation(FedAvg(), server_optimizer=Sgd(learning_rate=0.3), buffering=FedBuff(2))
    found = version(tmp_path, stages, versions, [(0, local[0]), (1, local[1])])
    differences = (3**-0.5 * (local[0] - versions[0]) + 2**-0.5 * (local[1] - versions[1])) / 2
    check("fed_buff, server learning rate", found, versions[-1] + 0.3 * differences, record_property)


def test_the_median_of_buffered_updates(tmp_path: Path, record_property: Any) -> None:
    versions, local = history(1, 4), history(2, 3)
    found = version(
        tmp_path, Aggregation(Median(), buffering=FedBuff(3)), versions, list(zip((3, 0, 2), local, strict=True))
    )
    moved = [(4 - base) ** -0.5 * (one - versions[base]) for base, one in zip((3, 0, 2), local, strict=True)]
    check("median, buffered", found, versions[-1] + np.median(moved, axis=0), record_property)


@pytest.mark.parametrize("base", [4, 1])
@pytest.mark.parametrize("name", ["w", "bn.running_mean"])
def test_fed_async(tmp_path: Path, record_property: Any, base: int, name: str) -> None:
    # x := (1 - a) x + a w, with a = alpha (t - tau + 1)^-exponent; buffers too.
    versions, (local,) = history(1, 5), history(2, 1)
    buffering = Aggregation(FedAvg(), buffering=FedAsync(alpha=0.7, exponent=0.9))
    found = version(tmp_path, buffering, versions, [(base, local)], name=name)
    alpha = 0.7 * (4 - base + 1) ** -0.9
    check(f"fed_async {base}", found, (1 - alpha) * versions[-1] + alpha * local, record_property)


@pytest.mark.parametrize("base", [4, 1])
def test_fed_async_with_differences_moves_towards_what_they_stand_for(tmp_path: Path, base: int) -> None:
    versions, (difference,) = history(1, 5, np.float32), history(2, 1, np.float16)
    buffering = Aggregation(FedAvg(), buffering=FedAsync(alpha=0.7))
    found = version(tmp_path, buffering, versions, [(base, difference)], HALF)
    alpha = 0.7 * (4 - base + 1) ** -0.5
    local = versions[base].astype(np.float64) + difference
    assert np.allclose(found, (1 - alpha) * versions[-1] + alpha * local, rtol=0, atol=3e-7)


@pytest.mark.parametrize("buffering", [FedBuff(1), FedAsync()])
def test_integers_count_as_they_are(tmp_path: Path, buffering: Any) -> None:
    versions = [np.full(3, number, np.int64) for number in range(4)]
    found = version(tmp_path, Aggregation(FedAvg(), buffering=buffering), versions, [(1, np.full(3, 9, np.int64))])
    assert found.tolist() == [9, 9, 9]


def test_fed_buff_with_differences_adds_them(tmp_path: Path) -> None:
    versions, sent = history(1, 5, np.float32), history(2, 2, np.float16)
    found = version(tmp_path, Aggregation(FedAvg(), buffering=FedBuff(2)), versions, [(4, sent[0]), (2, sent[1])], HALF)
    expected = versions[-1].astype(np.float64) + (sent[0].astype(np.float64) + 3**-0.5 * sent[1].astype(np.float64)) / 2
    assert np.allclose(found, expected, rtol=0, atol=3e-7)


def test_an_update_of_the_latest_version_is_fed_avg(tmp_path: Path) -> None:
    versions, local = history(1, 2, np.float32), history(2, 3, np.float32)
    updates = [(1, one) for one in local]
    found = version(tmp_path, Aggregation(FedAvg(), buffering=FedBuff(3)), versions, updates)
    (tmp_path / "made").unlink()
    assert np.array_equal(found, version(tmp_path, Aggregation(FedAvg()), versions, updates))
