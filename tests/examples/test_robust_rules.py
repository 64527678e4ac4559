import json
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def robust_rules():
    import robust_rules

    return robust_rules


def test_garbage_has_the_shapes_and_the_values_of_the_model(robust_rules) -> None:
    model = robust_rules.initial_model(np.random.default_rng(0))
    sent, num_examples = robust_rules.garbage(10, seed=1)(model, None)
    assert num_examples == 10 * robust_rules.CLAIMED
    for name, array in model.items():
        assert sent[name].shape == array.shape
        assert sorted(sent[name].ravel()) == sorted(array.ravel())
    assert not np.array_equal(sent["hidden.weight"], model["hidden.weight"])


def test_labels_are_moved_apart(robust_rules) -> None:
    moved = robust_rules.spread({"a": 0.95, "b": 0.94, "c": 0.5})
    assert moved == pytest.approx({"a": 0.95, "b": 0.95 - robust_rules.LABEL_GAP, "c": 0.5})


@pytest.mark.examples
@pytest.mark.timeout(600)
def test_the_experiment_runs_against_a_real_server(robust_rules, tmp_path: Path, monkeypatch, capsys) -> None:
    arms = [robust_rules.ARMS[index] for index in (0, 1, 4)]
    for name, value in {"PARTICIPANTS": 5, "ROUNDS": 4, "ARMS": arms}.items():
        monkeypatch.setattr(robust_rules, name, value)
    monkeypatch.setattr("sys.argv", ["robust_rules.py", "--output", str(tmp_path)])
    robust_rules.main()
    curves = json.loads((tmp_path / "robust-rules.json").read_text())["accuracies"]
    assert [len(curves[arm.name]) for arm in arms] == [5, 5, 5]
    assert curves["Multi-Krum"][-1] > curves["FedAvg"][-1]
    assert capsys.readouterr().out.count("accuracy") == 3
    assert (tmp_path / "robust-rules.png").read_bytes().startswith(b"\x89PNG")
