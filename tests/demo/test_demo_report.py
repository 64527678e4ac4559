import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fedround_client.demo import report
from fedround_client.demo.settings import Settings
from fedround_client.demo.uncertainty import RotationResult

SETTINGS = Settings(rounds=2, clients=3, alpha=0.3, local_epochs=1, seed=1, output=Path("demo"))


TURNED = RotationResult(
    degrees=(0, 90, 180),
    examples=[np.zeros((4, 1, 8, 8), np.float32)] * 3,
    accuracy=[1.0, 0.2, 0.4],
    predictive_entropy=[0.1, 0.9, 0.7],
    expected_entropy=[0.1, 0.6, 0.5],
    mutual_information=[0.0, 0.3, 0.2],
)


def outcome(clients: int = 3) -> report.Outcome:
    return report.Outcome(
        federated=[0.1, 0.9, 0.98],
        alone=[[0.1, 0.5, 0.6 + client / 100] for client in range(clients)],
        centralised=[0.1, 0.97, 0.99],
        images=[100] * clients,
        model_id="00000000-0000-0000-0000-000000000001",
        model_sha256="ab" * 32,
        rotated=TURNED,
    )


def test_the_report_is_written_as_json(tmp_path: Path) -> None:
    report.write_json(outcome(), SETTINGS, 12.345, tmp_path / "report.json")
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert (
        numbers
        | {
            "final_accuracy": 0.98,
            "rounds": 2,
            "clients": 3,
            "local_accuracies": [0.6, 0.61, 0.62],
            "centralised_accuracy": 0.99,
            "seconds": 12.3,
            "model_sha256": "ab" * 32,
            "accuracy_by_round": [0.1, 0.9, 0.98],
            "local_accuracy_by_round": [[0.1, 0.5, 0.6], [0.1, 0.5, 0.61], [0.1, 0.5, 0.62]],
            "centralised_accuracy_by_round": [0.1, 0.97, 0.99],
        }
        == numbers
    )
    assert numbers["uncertainty"] == {
        "method": "mc_dropout",
        "samples": 30,
        "images": 4,
        "degrees": [0, 90, 180],
        "accuracy": [1.0, 0.2, 0.4],
        "predictive_entropy": [0.1, 0.9, 0.7],
        "expected_entropy": [0.1, 0.6, 0.5],
        "mutual_information": [0.0, 0.3, 0.2],
    }


@pytest.mark.parametrize("clients", [1, 5, 50])
def test_a_plot_is_drawn_however_many_clients_there_are(tmp_path: Path, clients: int) -> None:
    report.draw(outcome(clients), SETTINGS, tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_of_rotated_digits_has_entropies_and_the_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: (drawn.append(figure), save(figure, path)))
    report.draw_rotated(TURNED, tmp_path / "uncertainty.png")
    assert (tmp_path / "uncertainty.png").read_bytes().startswith(b"\x89PNG")
    curves = [line.get_ydata().tolist() for axes in drawn[0].axes for line in axes.lines]
    assert curves == [TURNED.predictive_entropy, TURNED.accuracy]


@pytest.mark.parametrize(
    "heights", [[], [0.5], [0.5, 0.5, 0.5], [0.1, 0.98, 0.99, 1.0], [0.1, 0.12, 0.5, 0.99], [0.99, 0.991, 0.992, 1.0]]
)
def test_labels_are_moved_apart(heights: list[float]) -> None:
    moved = report.spread(heights, 0.05)
    assert len(moved) == len(heights)
    assert all(upper - lower >= 0.05 - 1e-9 for lower, upper in pairwise(moved))
    assert max(moved, default=0) <= 1


def test_labels_that_do_not_overlap_are_not_moved() -> None:
    assert report.spread([0.2, 0.5, 0.9], 0.05) == [0.2, 0.5, 0.9]
