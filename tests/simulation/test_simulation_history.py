import json
from pathlib import Path

import pytest

from fedround.v1.event_pb2 import ROUND_KIND_EVALUATE, ROUND_KIND_TRAIN, Event, ModelInfo, RoundStarted
from fedround.v1.training_pb2 import Training
from fedround_client.simulation import results
from fedround_client.simulation.history import Failure, History, RoundRecord
from fedround_client.simulation.results import metric_curves, write_results
from fedround_client.simulation.run import Simulation


def test_events_become_rounds() -> None:
    history = History({"a": 0, "b": 1}, planned=2)
    started = RoundStarted(round=0, kind=ROUND_KIND_TRAIN, model=ModelInfo(version=0))
    history.add(Event(round_started=started))
    history.add(Event(heartbeat={}))
    history.add(Event(update_accepted={"round": 0, "updates_arrived": 1, "updates_expected": 2}))
    (record,) = history.rounds
    assert (record.kind, record.arrived, record.expected, record.seconds) == ("TRAIN", 1, 2, None)
    failed = {"round": 0, "participant_id": "b", "reason": "TRAIN_FAILED", "message": "ValueError: x"}
    history.add(Event(participant_failed={**failed, "updates_arrived": 1, "updates_expected": 1}))
    assert history.failures == [Failure(1, 0, "TRAIN_FAILED", "ValueError: x")]
    assert (record.failed, record.expected) == (1, 1)
    history.add(Event(round_started=started))  # a repeated round
    closed = {"round": 0, "kind": ROUND_KIND_TRAIN, "model_version": 1, "num_updates": 1, "metrics": {"b": 2, "a": 1}}
    history.add(Event(round_closed=closed))
    assert history.rounds == [record]
    assert (record.model_version, record.metrics) == (1, {"a": 1, "b": 2})
    assert record.seconds is not None
    history.add(Event(round_started={"round": 1, "kind": ROUND_KIND_EVALUATE}))
    assert [record.kind for record in history.rounds] == ["TRAIN", "EVALUATE"]


ROUNDS = [
    RoundRecord(0, "TRAIN", 1, metrics={"accuracy": 0.5, "loss": 2.0}),
    RoundRecord(1, "EVALUATE", 1, metrics={"accuracy": 0.4}),
    RoundRecord(2, "TRAIN", 2, metrics={"accuracy": 0.7, "loss": 1.0}),
]


def test_metrics_of_training_and_evaluation_are_told_apart() -> None:
    assert metric_curves(ROUNDS) == {
        "accuracy": [(1, 0.4)],
        "accuracy (train)": [(1, 0.5), (2, 0.7)],
        "loss": [(1, 2.0), (2, 1.0)],
    }


@pytest.mark.parametrize("draws", [True, False])
def test_results_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draws: bool) -> None:
    monkeypatch.setattr(results, "can_draw", lambda: draws)
    (tmp_path / "metrics.png").write_text("of an earlier run")
    result = Simulation(Training(model_version=2), {}, "abc", ROUNDS, [Failure(3, 0, "X", "y")], 1.234)
    write_results(result, tmp_path, clients=4, workers=2, seed=5)
    report = json.loads((tmp_path / "report.json").read_text())
    assert {name: report[name] for name in ("clients", "workers", "seed", "seconds", "model_sha256")} == {
        "clients": 4,
        "workers": 2,
        "seed": 5,
        "seconds": 1.23,
        "model_sha256": "abc",
    }
    assert report["rounds"][1]["metrics"] == {"accuracy": 0.4}
    assert report["failures"] == [{"client": 3, "round": 0, "reason": "X", "message": "y"}]
    assert (tmp_path / "metrics.png").exists() is draws
    if draws:
        assert (tmp_path / "metrics.png").read_bytes().startswith(b"\x89PNG")
