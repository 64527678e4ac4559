import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fedround_client as fr


@pytest.fixture
def fed_dc():
    import fed_dc

    return fed_dc


def loss(fed_dc, model, images, labels) -> float:
    return -float(np.log(fed_dc.probabilities(model, images)[1][np.arange(len(labels)), labels]).mean())


def test_a_step_goes_down_the_gradient(fed_dc) -> None:
    rng = np.random.default_rng(0)
    model = {name: array.astype(np.float64) for name, array in fed_dc.initial_model(rng).items()}
    images, labels = rng.random((5, 64)), rng.integers(0, 10, 5)
    moved = {name: array.copy() for name, array in model.items()}
    fed_dc.step(moved, images, labels)
    for name, array in model.items():
        place = tuple(rng.integers(0, size) for size in array.shape)
        gradient = (array[place] - moved[name][place]) / fed_dc.LEARNING_RATE
        nudged = [dict(model) for _ in range(2)]
        for one, sign in zip(nudged, (1, -1), strict=True):
            one[name] = array.copy()
            one[name][place] += sign * 1e-5
        slope = (loss(fed_dc, nudged[0], images, labels) - loss(fed_dc, nudged[1], images, labels)) / 2e-5
        assert gradient == pytest.approx(slope, abs=1e-6), name


@pytest.mark.examples
@pytest.mark.timeout(600)
def test_the_experiment_runs_against_a_real_server(fed_dc, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(fed_dc, "PARTICIPANTS", 3)
    monkeypatch.setattr(fed_dc, "LOCAL_ROUNDS", 4)
    arms = [
        replace(fed_dc.ARMS[0], versions=2, aggregation=fr.FedDc(aggregation_period=2, seed=1)),
        replace(fed_dc.ARMS[1], versions=2, steps=2),
        replace(fed_dc.ARMS[2], versions=4),
    ]
    monkeypatch.setattr(fed_dc, "ARMS", arms)
    monkeypatch.setattr("sys.argv", ["fed_dc.py", "--output", str(tmp_path)])
    fed_dc.main()
    curves = json.loads((tmp_path / "fed_dc.json").read_text())["accuracies"]
    assert [len(curves[arm.name]) for arm in arms] == [3, 3, 5]
    assert len({curve[0] for curve in curves.values()}) == 1
    assert capsys.readouterr().out.count("accuracy") == 3
    assert (tmp_path / "fed_dc.png").read_bytes().startswith(b"\x89PNG")


def test_labels_are_moved_apart(fed_dc) -> None:
    moved = fed_dc.spread({"a": 0.5, "b": 0.51, "c": 0.9})
    assert moved["a"] == 0.5
    assert moved["b"] == pytest.approx(0.5 + fed_dc.LABEL_GAP)
    assert moved["c"] == 0.9
