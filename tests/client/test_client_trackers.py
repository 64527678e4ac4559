"""Trackers: what they write, and that a record which comes again, or was half written, is there once."""

import csv
import json
import struct
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from client.scripted import MODEL, OTHER, TRAINING
from fedround.v1.aggregation_pb2 import Aggregation, FedProx
from fedround.v1.training_pb2 import Training, TrainingSpec
from fedround_client import TrackerFailed
from fedround_client.command.track import TrackerChoice
from fedround_client.trackers import TRACKERS, EndRecord, RoundRecord, make_tracker
from fedround_client.trackers import mlflow as mlflow_tracker
from tracked import FILES, content, mlflow_run

SPEC = TrainingSpec(
    name="digits/ü", metric_names=["accuracy"], client_ids=["x"], aggregation=Aggregation(fed_prox=FedProx(mu=0.5))
)
DIGITS = Training(training_id=TRAINING, model_id=MODEL, spec=SPEC)
DIGITS.start_time.FromSeconds(1_800_000_000)
RECORDS = [
    RoundRecord(3, 1_800_000_001.5, 0, "TRAIN", 1, 4, 1, 1.5, {"loss": -0.1}, {"loss": 1}, 0.25),
    RoundRecord(5, 1_800_000_002.0, 1, "EVALUATE", 1, 5, 0, 0.5, {"accuracy": 0.1 + 0.2}),
    RoundRecord(9, 1_800_000_004.0, 2, "TRAIN", 2, 4, 0, None, {"=cmd()": 1.0, "round": 2.0}),
    RoundRecord(12, 1_800_000_005.0, 3, "EVALUATE", 2, 5, 0, 0.5, {"accuracy": float("inf")}),
]
END = EndRecord(14, 1_800_000_006.0, "failed", "DEADLINE_MISSED", "no update")


@pytest.fixture(autouse=True)
def _no_settings_of_mlflow(monkeypatch):
    for name in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_NAME",
        "MLFLOW_ALLOW_FILE_STORE",
        "MLFLOW_DISABLE_TELEMETRY",
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def track(name: str, folder: Path, upto: int | None = None, *, end: bool = True) -> int:
    """Runs a tracker from where it was, as `Client.track` does; returns where it was."""
    tracker = make_tracker(name, str(folder / FILES.get(name, "out")))
    try:
        cursor = tracker.begin(DIGITS)
        for record in RECORDS[:upto]:
            if record.sequence > cursor:
                tracker.write(record)
        if end and upto is None and cursor < END.sequence:
            tracker.end(END)
    finally:
        tracker.close()
    return cursor


@pytest.mark.parametrize("name", TRACKERS)
def test_stops_between_all_records_leave_no_trace(name, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert track(name, whole) == 0
    cursors = [track(name, parts, upto) for upto in range(len(RECORDS) + 1)] + [track(name, parts), track(name, parts)]
    assert cursors == [0, 0, 3, 5, 9, 12, 12 if name == "csv" else 14]
    assert content(name, parts) == content(name, whole)


@pytest.mark.parametrize("name", TRACKERS)
def test_where_it_writes_is_said(name, tmp_path, caplog):
    caplog.set_level("INFO", "fedround_client")
    track(name, tmp_path)
    assert "Writing to " in caplog.messages[0]
    assert str(tmp_path) in caplog.messages[0]


def test_a_password_of_mlflow_is_not_said(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "fedround_client")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with closing(make_tracker("mlflow", "http://me:secret@127.0.0.1:1")) as tracker, pytest.raises(TrackerFailed):
        tracker.begin(DIGITS)
    assert caplog.messages == ["Writing to MLflow at http://127.0.0.1:1"]


def test_csv(tmp_path):
    track("csv", tmp_path)
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert list(rows[0]) == [
        *("training_id", "sequence", "time", "round", "kind", "version", "updates", "failed", "seconds", "epsilon"),
        *("accuracy", "loss", "'=cmd()", "round (metric)"),
    ]
    assert list(rows[0].values()) == [
        *(TRAINING, "3", "2027-01-15T08:00:01.500Z", "1", "TRAIN", "1", "4", "1", "1.5", "0.25", "", "-0.1", "", "")
    ]
    assert [row["accuracy"] for row in rows] == ["", "0.30000000000000004", "", "inf"]
    assert [row["seconds"] for row in rows] == ["1.5", "0.5", "", "0.5"]


def test_jsonl(tmp_path):
    track("jsonl", tmp_path)
    run, first, *_, last, end = map(json.loads, (tmp_path / "t.jsonl").read_text().splitlines())
    assert (run["type"], run["training_id"], run["name"]) == ("run", TRAINING, "digits/ü")
    assert run["parameters"]["aggregation.fed_prox.mu"] == "0.5"
    assert not [name for name in run["parameters"] if "client" in name]
    fields = {"type": "round", "sequence": 3, "time": "2027-01-15T08:00:01.500Z", "number": 0, "kind": "TRAIN"}
    fields |= {"version": 1, "num_updates": 4, "num_failed": 1, "seconds": 1.5, "metrics": {"loss": -0.1}}
    assert first == fields | {"not_finite": {"loss": 1}, "epsilon": 0.25}
    assert last["metrics"] == {"accuracy": None}
    assert (end["type"], end["state"], end["reason"]) == ("end", "failed", "DEADLINE_MISSED")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_ends_at_any_byte_goes_on(name, tmp_path):
    path = tmp_path / FILES[name]
    track(name, tmp_path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 31):
        path.write_bytes(whole[:size])
        track(name, tmp_path)
        assert path.read_bytes() == whole
    for torn in (b"\0\0\0", b"\0\0\n"):
        path.write_bytes(whole + torn)
        track(name, tmp_path)
        assert path.read_bytes() == whole


def test_an_event_file_that_ends_within_a_record_goes_on(tmp_path):
    track("tensorboard", tmp_path)
    whole = content("tensorboard", tmp_path)
    (file,) = tmp_path.glob("out/*/*.tfevents.*")
    data, starts = file.read_bytes(), [0]
    while starts[-1] < len(data):
        starts.append(starts[-1] + struct.unpack("<Q", data[starts[-1] : starts[-1] + 8])[0] + 16)
    for start, end in pairwise(starts):
        for cut in (start + 5, end - 1):
            for other in file.parent.glob("*.tfevents.*"):
                other.unlink()
            file.write_bytes(data[:cut])
            track("tensorboard", tmp_path)
            assert content("tensorboard", tmp_path) == whole


def test_tensorboard(tmp_path):
    track("tensorboard", tmp_path)
    scalars, texts = content("tensorboard", tmp_path)
    assert scalars["evaluate/accuracy"] == [(1, pytest.approx(0.3)), (2, float("inf"))]
    assert scalars["train_round/updates"] == [(1, 4), (2, 4)]
    assert scalars["train_round/seconds"] == [(1, 1.5)]
    assert scalars["privacy/epsilon"] == [(1, 0.25)]
    assert texts == ["end/text_summary", "parameters/text_summary"]
    (run,) = (tmp_path / "out").iterdir()
    assert run.name == "digits_ü-11111111"


def test_mlflow(tmp_path):
    track("mlflow", tmp_path)
    metrics, params, tags = content("mlflow", tmp_path)
    assert metrics["evaluate/accuracy"] == [(1, 1_800_000_002_000, 0.1 + 0.2), (2, 1_800_000_005_000, float("inf"))]
    assert metrics["train_round/failed"] == [(1, 1_800_000_001_500, 1), (2, 1_800_000_004_000, 0)]
    assert [name for name in metrics if "cmd" in name] == ["train_cmd_-" + mlflow_tracker._name("train/=cmd()")[-8:]]
    assert params["aggregation.fed_prox.mu"] == "0.5"
    assert (tags["fedround.training_id"], tags["fedround.end"]) == (TRAINING, "failed")
    run, _ = mlflow_run(tmp_path)
    assert (run.info.status, run.info.run_name) == ("FAILED", "digits/ü")
    assert (run.info.start_time, run.info.end_time) == (1_800_000_000_000, 1_800_000_006_000)


@pytest.mark.parametrize("calls", range(12))
def test_a_run_of_mlflow_that_is_cut_at_any_call_goes_on(tmp_path, monkeypatch, calls):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    track("mlflow", whole)
    wanted, left = content("mlflow", whole), [calls]

    class Killed(BaseException):
        pass

    def dies_after(function):
        def call(*args, **options):
            if not left[0]:
                raise Killed
            left[0] -= 1
            return function(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for method in ("create_run", "log_batch", "set_tag", "set_terminated"):
            patch.setattr(MlflowClient, method, dies_after(getattr(MlflowClient, method)))
        with suppress(Killed):
            track("mlflow", parts)
    track("mlflow", parts)
    assert content("mlflow", parts) == wanted


@pytest.mark.parametrize("name", FILES)
def test_the_output_of_another_training_is_refused_and_stays(name, tmp_path):
    track(name, tmp_path)
    before = content(name, tmp_path)
    notes = ["training_id,", '{"type": "run"}', "one line\n", "two\nlines", "two\nlines\n"]
    for number, text in enumerate(notes):
        (tmp_path / f"notes{number}").write_text(text + "...")
    files = [(f"notes{number}", DIGITS) for number in range(len(notes))]
    for path, training in ((FILES[name], Training(training_id=OTHER)), *files):
        with (
            closing(make_tracker(name, str(tmp_path / path))) as tracker,
            pytest.raises(TrackerFailed, match="does not belong to the training"),
        ):
            tracker.begin(training)
    assert content(name, tmp_path) == before
    assert [(tmp_path / path).read_text() for path, _ in files] == [f"{text}..." for text in notes]


@pytest.mark.parametrize("name", ["csv", "jsonl", "tensorboard"])
def test_two_trackers_do_not_write_to_one_output(name, tmp_path):
    first, second, third = (make_tracker(name, str(tmp_path / "out")) for _ in range(3))
    with closing(first), closing(second):
        first.begin(DIGITS)
        with pytest.raises(TrackerFailed, match="Another tracker writes to"):
            second.begin(DIGITS)
    with closing(third):
        assert third.begin(DIGITS) == 0


def test_the_command_offers_all_trackers():
    assert [choice.value for choice in TrackerChoice] == list(TRACKERS)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("fedround_client.trackers.find_spec", lambda name: None)
    with pytest.raises(TrackerFailed, match=r'pip install "fedround\[mlflow\]"'):
        make_tracker("mlflow")
    with pytest.raises(ValueError, match="There is no tracker 'excel'"):
        make_tracker("excel")
