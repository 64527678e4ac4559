"""Updates that were trained from other versions than the model that they are aggregated around."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedround_server.aggregators import STAGES
from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.transport import Transport, UpdatePrecision
from fedround_server.engine.aggregation import aggregate
from fedround_server.engine.format.tensors import TensorFile
from fedround_server.engine.jobs import AggregationJob, UpdateOrigin
from unit.aggregating import Rounds
from unit.paths import Paths


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "bn.running_mean": torch.randn(4, generator=generator),
        "steps": torch.tensor(seed),
        "w": torch.randn(300, 500, generator=generator),
    }


def made(folder: Path, job: AggregationJob) -> dict[str, torch.Tensor]:
    target = folder / "made"
    target.unlink(missing_ok=True)
    aggregate(Paths(folder), job, target)
    with TensorFile(target) as file:
        return {name: file.tensor(name) for name in file.layout.manifest}


@pytest.mark.parametrize("precision", [UpdatePrecision.FULL, UpdatePrecision.FLOAT16])
def test_differences_from_other_versions_are_added_to_the_model(tmp_path: Path, precision: UpdatePrecision) -> None:
    model, bases, locals_ = tensors(1), [tensors(2), tensors(1)], [tensors(3), tensors(4)]
    factors = (0.5, 2.0)
    rounds = Rounds(tmp_path, Aggregation(FedAvg()))
    sent = locals_
    if precision is UpdatePrecision.FLOAT16:
        sent = [
            {name: (one[name] - base[name]).half() if one[name].is_floating_point() else one[name] for name in one}
            for one, base in zip(locals_, bases, strict=True)
        ]
    job = AggregationJob(
        rounds.write(model),
        tuple(rounds.write(one) for one in sent),
        (1, 3),
        Aggregation(FedAvg()),
        Transport((), precision, False),
        origins=(UpdateOrigin(rounds.write(bases[0]), factors[0]), UpdateOrigin(None, factors[1])),
    )
    result = made(tmp_path, job)
    differences = [
        (one["w"].double() if precision is UpdatePrecision.FLOAT16 else one["w"].double() - base["w"].double()) * factor
        for one, base, factor in zip(sent, bases, factors, strict=True)
    ]
    wanted = model["w"].double() + (differences[0] + 3 * differences[1]) / 4
    assert torch.allclose(result["w"].double(), wanted, rtol=0, atol=3e-7)
    # A buffer counts as it is, whatever version it comes from.
    buffer = "bn.running_mean"
    mean = (locals_[0][buffer].double() + 3 * locals_[1][buffer].double()) / 4
    assert torch.allclose(result[buffer].double(), mean, rtol=0, atol=4e-3 if sent is not locals_ else 3e-7)
    assert result["steps"] == 4


@pytest.mark.parametrize("name", sorted(STAGES["algorithm"].keys() & {"fed_avg", "median", "krum", "geometric_median"}))
def test_an_update_of_another_version_equals_one_that_was_moved_before(tmp_path: Path, name: str) -> None:
    model, base = tensors(1), tensors(2)
    rounds = Rounds(tmp_path, Aggregation(STAGES["algorithm"][name]()))
    stale = [{**tensors(seed), "w": base["w"] + tensors(seed)["w"] / 64} for seed in range(3, 8)]
    moved = [{**one, "w": (model["w"].double() + (one["w"].double() - base["w"].double())).float()} for one in stale]
    job = AggregationJob(
        rounds.write(model), tuple(map(rounds.write, stale)), (1,) * 5, rounds.aggregation,
        origins=(UpdateOrigin(rounds.write(base)),) * 5,
    )  # fmt: skip
    plain = replace(job, updates=tuple(map(rounds.write, moved)), origins=())
    assert torch.allclose(made(tmp_path, job)["w"], made(tmp_path, plain)["w"], rtol=0, atol=2e-6)


def test_the_order_of_equal_files_from_different_versions_does_not_matter(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path, Aggregation(FedAvg()))
    same = rounds.write(tensors(5))
    origins = (UpdateOrigin(rounds.write(tensors(2)), 0.3), UpdateOrigin(None, 0.7), UpdateOrigin(None, 0.1))
    job = AggregationJob(rounds.write(tensors(1)), (same,) * 3, (1, 1, 1), rounds.aggregation, origins=origins)
    turned = replace(job, origins=origins[::-1])
    assert torch.equal(made(tmp_path, job)["w"], made(tmp_path, turned)["w"])
