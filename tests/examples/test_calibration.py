from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def calibration():
    import calibration

    return calibration


def test_against_numbers_worked_out_by_hand(calibration) -> None:
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.45, 0.55]])
    found = calibration.reliability(probabilities, np.array([0, 1, 1, 1]), bins=2)
    assert found.count.tolist() == [0, 4]
    assert found.confidence[1] == pytest.approx((0.9 + 0.7 + 0.8 + 0.55) / 4)
    assert found.accuracy[1] == 0.75
    assert found.expected_calibration_error == pytest.approx(0.75 - 0.7375)
    finer = calibration.reliability(probabilities, np.array([0, 1, 1, 1]), bins=10)
    # The bins of 0.5, 0.7, 0.8 and 0.9 have one prediction each; the one of 0.7 is wrong.
    assert finer.expected_calibration_error == pytest.approx((0.45 + 0.7 + 0.2 + 0.1) / 4)


def test_certainty_that_is_always_right_is_calibrated(calibration) -> None:
    found = calibration.reliability(np.eye(3), np.arange(3))
    assert found.expected_calibration_error == 0
    assert found.count[-1] == 3


def test_draws_of_the_probabilities_themselves_are_calibrated(calibration) -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(4), 50_000)
    labels = (probabilities.cumsum(axis=1) < rng.random((50_000, 1))).sum(axis=1).clip(max=3)
    assert calibration.reliability(probabilities, labels).expected_calibration_error < 0.01
    assert calibration.reliability(probabilities, (labels + 1) % 4).expected_calibration_error > 0.2


@pytest.mark.parametrize(
    ("probabilities", "labels", "text"),
    [
        (np.ones((2, 2)), np.zeros(2, int), "softmax"),
        (np.full((2, 2), 0.5), np.zeros(3, int), "do not match"),
        (np.zeros((0, 2)), np.zeros(0, int), "do not match"),
    ],
)
def test_what_is_no_probability_is_rejected(calibration, probabilities, labels, text) -> None:
    with pytest.raises(ValueError, match=text):
        calibration.reliability(probabilities, labels)


def test_the_script_reads_predictions_and_draws(calibration, tmp_path: Path, monkeypatch, capsys) -> None:
    np.savez(tmp_path / "predictions.npz", mean=np.eye(3, dtype=np.float32))
    np.save(tmp_path / "labels.npy", np.arange(3))
    paths = [str(tmp_path / name) for name in ("predictions.npz", "labels.npy", "reliability.png")]
    monkeypatch.setattr("sys.argv", ["calibration.py", *paths])
    calibration.main()
    assert capsys.readouterr().out == "expected calibration error: 0.0000\n"
    assert Path(paths[-1]).read_bytes().startswith(b"\x89PNG")
