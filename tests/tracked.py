"""What trackers have written, as its readers see it."""

from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

FILES = {"csv": "t.csv", "jsonl": "t.jsonl"}
"""The files of trackers in their folder; others have a folder `out` in it."""


def content(name: str, folder: Path) -> Any:
    """Everything that a tracker has written into a folder."""
    if name in FILES:
        return (folder / FILES[name]).read_text()
    if name == "tensorboard":
        (run,) = (folder / "out").iterdir()
        found = EventAccumulator(str(run))
        found.Reload()
        scalars = {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
        return scalars, sorted(tag for tag in found.Tags()["tensors"] if "text" in tag)
    run, client = mlflow_run(folder)
    metrics = {
        key: sorted((one.step, one.timestamp, one.value) for one in client.get_metric_history(run.info.run_id, key))
        for key in run.data.metrics
    }
    return metrics, run.data.params, {key: run.data.tags[key] for key in run.data.tags if "fedround" in key}


def mlflow_run(folder: Path) -> tuple[Run, MlflowClient]:
    """The only run, and a client that reads it."""
    client = MlflowClient(tracking_uri=str(folder / "out"))
    (run,) = client.search_runs([client.get_experiment_by_name("fedround").experiment_id])
    return run, client
