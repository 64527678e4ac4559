"""Each rule compared with an independent computation, written from its paper with whole vectors in NumPy."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedround_server.domain.aggregation import Aggregation
from unit.aggregating import TRUSTED, Rounds, Sent, stage
from unit.oracles import SIZE, Vectors, check, norm, walk, weighted_mean

COUNT = 11


def problem(seed: int) -> tuple[np.ndarray, Vectors, list[Sent]]:
    """A model, the differences of updates from it, and the updates: most are close to each other, two are not."""
    rng = np.random.default_rng(seed)
    model = rng.standard_normal(SIZE)
    updates = model + 0.5 * rng.standard_normal(SIZE) + 0.2 * rng.standard_normal((COUNT, SIZE))
    updates[3] += 5 * rng.standard_normal(SIZE)
    updates[8] = model - 2 * (updates[8] - model)
    sent = [
        Sent({"w": torch.tensor(one)}, int(rng.integers(1, 50)), f"site {n}", int(rng.integers(1, 9)), rng.random())
        for n, one in enumerate(updates)
    ]
    return model, updates - model, sent


def run(folder: Path, aggregation: Aggregation, model: np.ndarray, sent: Sequence[Sent]) -> np.ndarray:
    """What the engine makes, less the model."""
    return Rounds(folder, aggregation).aggregate({"w": torch.tensor(model)}, sent)["w"].numpy() - model


def nova(differences: Vectors, sent: Sequence[Sent]) -> np.ndarray:
    """Wang et al., equations 5 to 7, for plain gradient descent: the norm of a_i is the number of steps."""
    parts = np.array([one.weight for one in sent]) / sum(one.weight for one in sent)
    steps = np.array([one.steps for one in sent])
    directions = differences / steps[:, None]
    return (parts * steps).sum() * (parts[:, None] * directions).sum(axis=0)


def q_fair(differences: Vectors, sent: Sequence[Sent], q: float, lipschitz: float) -> np.ndarray:
    """Li et al., algorithm 2, in its notation; like their program, with 1e-10 added to each loss."""
    numerator, denominator = np.zeros(SIZE), 0.0
    for difference, one in zip(differences, sent, strict=True):
        gradient, loss = -lipschitz * difference, one.loss + 1e-10
        numerator += loss**q * gradient
        denominator += q * loss ** (q - 1) * norm(gradient) ** 2 + lipschitz * loss**q
    return -numerator / denominator


def trimmed(differences: Vectors, cut: int) -> np.ndarray:
    return np.sort(differences, axis=0)[cut : len(differences) - cut].mean(axis=0)


def by_score(differences: Vectors, f: int) -> list[int]:
    """Blanchard et al., section 4; of equal scores, the one that is nearer to all."""
    found = []
    for i, one in enumerate(differences):
        distances = sorted(norm(one - other) ** 2 for j, other in enumerate(differences) if j != i)
        found.append((sum(distances[: max(1, len(differences) - f - 2)]), sum(distances), i))
    return [i for _, _, i in sorted(found)]


def krum(differences: Vectors, f: int, m: int = 1) -> np.ndarray:
    return differences[by_score(differences, f)[:m]].mean(axis=0)


def bulyan(differences: Vectors, f: int) -> np.ndarray:
    """El Mhamdi et al., section 4: select n - 2f with Krum, then average the n - 4f values nearest to the median."""
    left, selected = list(differences), []
    while len(selected) < len(differences) - 2 * f:
        selected.append(left.pop(by_score(np.array(left), f)[0]))
    result = np.empty(SIZE)
    for column, values in enumerate(np.array(selected).T):
        nearest = np.argsort(np.abs(values - np.median(values)), kind="stable")[: len(differences) - 4 * f]
        result[column] = values[nearest].mean()
    return result


def weiszfeld(differences: Vectors, weights: Sequence[float], nu: float, iterations: int) -> np.ndarray:
    """Pillutla et al., the smoothed Weiszfeld algorithm, from the model."""
    point = np.zeros(differences.shape[1])
    for _ in range(iterations):
        betas = np.array([w / max(nu, norm(point - one)) for w, one in zip(weights, differences, strict=True)])
        point = (betas[:, None] * differences).sum(axis=0) / betas.sum()
    return point


def centered(differences: Vectors, center: np.ndarray, tau: float, iterations: int) -> np.ndarray:
    """Karimireddy et al., algorithm 2."""
    for _ in range(iterations):
        center = center + np.mean([(one - center) * min(1, tau / norm(one - center)) for one in differences], axis=0)
    return center


def trust(differences: Vectors, root: int) -> np.ndarray:
    """Cao et al., algorithm 2 and equation 4."""
    total, numerator = 0.0, np.zeros(SIZE)
    for index, one in enumerate(differences):
        if index != root:
            score = max(0.0, float(one @ differences[root]) / (norm(one) * norm(differences[root])))
            total += score
            numerator += score * norm(differences[root]) / norm(one) * one
    return numerator / total


def nearest_mixed(differences: Vectors, f: int) -> Vectors:
    """Allouah et al., algorithm 2."""
    mixed = []
    for one in differences:
        order = np.argsort([norm(one - other) for other in differences], kind="stable")
        mixed.append(differences[order[: len(differences) - f]].mean(axis=0))
    return np.array(mixed)


CASES: dict[str, tuple[Any, Any]] = {
    "fed_avg": ({}, weighted_mean),
    "fed_prox": ({"mu": 0.1}, weighted_mean),
    "fed_dc": ({}, weighted_mean),
    "fed_nova": ({}, nova),
    "q_fed_avg": ({"q": 2.0, "lipschitz": 3.0}, lambda d, s: q_fair(d, s, 2.0, 3.0)),
    "median": ({}, lambda d, s: np.median(d, axis=0)),
    "trimmed_mean": ({"beta": 0.2}, lambda d, s: trimmed(d, 2)),
    "krum": ({"f": 3}, lambda d, s: krum(d, 3)),
    "multi_krum": ({"f": 2}, lambda d, s: krum(d, 2, COUNT - 2)),
    "bulyan": ({"f": 2}, lambda d, s: bulyan(d, 2)),
    "geometric_median": (
        {"iterations": 6},
        lambda d, s: weiszfeld(d, [one.weight for one in s], 1e-6, 6),
    ),
    "centered_clipping": ({"tau": 3.0, "iterations": 4}, lambda d, s: centered(d, np.zeros(SIZE), 3.0, 4)),
    "fl_trust": ({}, lambda d, s: trust(d, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_does_what_its_paper_says(tmp_path: Path, name: str, record_property: Any) -> None:
    options, oracle = CASES[name]
    aggregation = Aggregation(stage("algorithm", name, **options))
    for seed in range(3):
        model, differences, sent = problem(seed)
        check(name, run(tmp_path, aggregation, model, sent), oracle(differences, sent), record_property)


def test_multi_krum_averages_as_many_as_asked(tmp_path: Path, record_property: Any) -> None:
    model, differences, sent = problem(4)
    aggregation = Aggregation(stage("algorithm", "multi_krum", f=2, m=3))
    check("multi_krum m", run(tmp_path, aggregation, model, sent), krum(differences, 2, 3), record_property)


def test_the_trimmed_mean_is_that_of_scipy(tmp_path: Path, record_property: Any) -> None:
    stats = pytest.importorskip("scipy.stats")
    model, differences, sent = problem(5)
    for beta in (0.0, 0.1, 0.25, 0.45):
        found = run(tmp_path, Aggregation(stage("algorithm", "trimmed_mean", beta=beta)), model, sent)
        check("trimmed_mean scipy", found, stats.trim_mean(differences, beta, axis=0), record_property)


def test_the_part_that_is_cut_off_is_a_decimal_number() -> None:
    trimmed_mean: Any = stage("algorithm", "trimmed_mean", beta=0.29)
    assert trimmed_mean.cut(100) == 29  # int(0.29 * 100) is 28.
    for beta, count in ((0.1, 10), (0.3, 10), (0.49, 100), (0.07, 100), (0.4999999999999999, 2), (0.0, 1)):
        exact = int(Fraction(str(beta)) * count)
        assert replace(trimmed_mean, beta=beta).cut(count) == exact


def test_the_vectors_of_byzfl(tmp_path: Path) -> None:
    rows = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]
    sent = [Sent({"w": torch.tensor(row, dtype=torch.float64)}) for row in rows]
    median = Aggregation(stage("algorithm", "geometric_median", nu=0.1, iterations=3))
    found = run(tmp_path, median, np.zeros(3), sent)
    assert found.tolist() == pytest.approx([3.78788764, 4.78788764, 5.78788764], abs=5e-9)
    clipping = Aggregation(stage("algorithm", "centered_clipping", tau=100.0))
    assert run(tmp_path, clipping, np.zeros(3), sent).tolist() == pytest.approx([4, 5, 6], abs=1e-15)


def test_norm_clipping(tmp_path: Path, record_property: Any) -> None:
    model, differences, sent = problem(6)
    clipped = np.array([one / max(1, norm(one) / 12) for one in differences])
    assert 0 < sum(norm(one) > 12 for one in differences) < COUNT
    for name, oracle in (("fed_avg", weighted_mean), ("median", lambda d, s: np.median(d, axis=0))):
        aggregation = Aggregation(stage("algorithm", name), clipping=stage("clipping", "fixed", norm=12.0))
        check(f"fixed {name}", run(tmp_path, aggregation, model, sent), oracle(clipped, sent), record_property)


def test_nearest_neighbor_mixing(tmp_path: Path, record_property: Any) -> None:
    model, differences, sent = problem(7)
    mixed = nearest_mixed(differences, 2)
    oracles = {
        "fed_avg": mixed.mean(axis=0),
        "median": np.median(mixed, axis=0),
        "krum": krum(mixed, 2),
        "geometric_median": weiszfeld(mixed, [1] * COUNT, 1e-6, 3),
    }
    for name, expected in oracles.items():
        options = {"f": 2} if name == "krum" else {}
        aggregation = Aggregation(stage("algorithm", name, **options), mixing=stage("mixing", "nearest_neighbor", f=2))
        check(f"nearest_neighbor {name}", run(tmp_path, aggregation, model, sent), expected, record_property)


def test_buckets_have_each_update_once_and_depend_on_the_seed(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    sent = [Sent({"w": torch.tensor(10.0**n + rng.random(2))}) for n in range(7)]
    values = np.array([one.tensors["w"].numpy() for one in sent])
    made = set()
    for seed in range(5):
        mixing = stage("mixing", "bucketing", size=2, seed=seed)
        matrix = mixing.matrix(_updates(7, str(sent)))
        assert sorted((matrix > 0).sum(axis=1)) == [1, 2, 2, 2]
        assert (matrix > 0).sum(axis=0).tolist() == [1] * 7
        assert matrix.sum(axis=1).tolist() == [1] * 4
        made.add(tuple(run(tmp_path, Aggregation(stage("algorithm", "median"), mixing=mixing), np.zeros(2), sent)))
    assert len(made) > 1
    # Buckets of one are the updates.
    alone = Aggregation(stage("algorithm", "median"), mixing=stage("mixing", "bucketing", size=1))
    assert run(tmp_path, alone, np.zeros(2), sent).tolist() == np.median(values, axis=0).tolist()


def _updates(number: int, digest: str) -> Any:
    from fedround_server.aggregators.rule import Updates

    return Updates((), (1,) * number, np.zeros((number, number)), np.zeros(number + 1), digest=digest)


def test_centered_clipping_remembers_its_center(tmp_path: Path, record_property: Any) -> None:
    rule = stage("algorithm", "centered_clipping", tau=2.0, iterations=2)
    versions, differences, _ = walk(tmp_path, Aggregation(rule), 11)
    center, expected = np.zeros(SIZE), []
    for one in differences:
        center = centered(one, center, 2.0, 2)
        expected.append(center)
    check("centered_clipping rounds", np.diff(versions, axis=0), np.array(expected), record_property)


def exact_square(first: torch.Tensor, second: torch.Tensor) -> Fraction:
    return sum(
        ((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(first.tolist(), second.tolist(), strict=True)), Fraction()
    )


@pytest.mark.parametrize("seed", range(5))
def test_updates_that_differ_in_their_last_digits_are_told_apart(tmp_path: Path, seed: int) -> None:
    # Around 1000, float32 numbers are 2^-14 apart: inner products of the updates themselves have no digit of that.
    rng = np.random.default_rng(seed)
    model = torch.full((300,), 1000.0)
    ulp = 2.0**-14
    rows = [model + torch.tensor(rng.integers(-9, 10, 300) * ulp, dtype=torch.float32) for _ in range(7)]
    sent = [Sent({"w": row}, n + 1) for n, row in enumerate(rows)]
    distances = [[exact_square(one, other) for other in rows] for one in rows]
    exact = [sum(sorted(row)[1 : 1 + 7 - 2 - 2]) for row in distances]
    training = Rounds(tmp_path, Aggregation(stage("algorithm", "krum", f=2)))
    chosen = training.aggregate({"w": model}, sent)["w"]
    assert torch.equal(chosen, rows[min(range(7), key=exact.__getitem__)])
    median = Rounds(tmp_path, Aggregation(stage("algorithm", "geometric_median", nu=1e-9, iterations=5)))
    found = median.aggregate({"w": model}, sent)["w"]
    differences = np.array([(row - model).double().numpy() for row in rows])
    point = weiszfeld(differences, [one.weight for one in sent], 1e-9, 5)
    assert np.array_equal(found.numpy(), (1000 + point).astype(np.float32))
    shares = [fact.share or 0 for fact in median.facts]
    before = weiszfeld(differences, [one.weight for one in sent], 1e-9, 4)
    betas = [one.weight / norm(before - row) for one, row in zip(sent, differences, strict=True)]
    assert shares == pytest.approx(np.array(betas) / sum(betas), rel=1e-12)


def test_fl_trust_is_not_moved_by_the_opposite(tmp_path: Path) -> None:
    model, differences, sent = problem(12)
    sent[1:] = [replace(one, tensors={"w": torch.tensor(model - differences[0])}) for one in sent[1:]]
    assert sent[0].user_id == TRUSTED
    assert not run(tmp_path, Aggregation(stage("algorithm", "fl_trust")), model, sent).any()
