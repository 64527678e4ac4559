"""MLflow: a run for each training, with its metrics by version."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedround.v1.training_pb2 import Training
from fedround_client.logs import get_logger
from fedround_client.trackers.output import failed
from fedround_client.trackers.tracker import EndRecord, RoundRecord, parameters

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

logger = get_logger(__name__)

EXPERIMENT = "fedround"
"""The experiment of the runs, unless MLFLOW_EXPERIMENT_NAME names another one."""
TRAINING_TAG = "fedround.training_id"
CURSOR_TAG = "fedround.sequence"
MAX_NAME = 200
MAX_VALUE = 500
"""Characters of a parameter's value that every store of MLflow takes."""
BATCH = 100
"""MLflow takes so many parameters, and ten times as many metrics, in one call."""

_ALLOWED = re.compile(r"[\w.\- :/]+", re.ASCII)
_FOREIGN = re.compile(r"[^\w.-]+", re.ASCII)
_USER_INFO = re.compile("//[^/@]*@")
_STATUS = {"completed": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "removed": "KILLED"}


class MlflowTracker:
    """Writes to a run that it finds by the tag with the training's id; another tag has what was written last."""

    def __init__(self, output: str = "") -> None:
        """Takes the tracking URI, or the folder of a file store; by default what MLflow is configured to use."""
        # Nothing but what the user asks for leaves this machine.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        if output.startswith("file:") or (output and "://" not in output and output != "databricks"):
            # MLflow advises against file stores; who names a folder wants one.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._uri = output or None
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._is_first = True

    def begin(self, training: Training) -> int:
        """Finds the run of the training, or creates it."""
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        with _errors():
            self._client = MlflowClient(tracking_uri=self._uri)
            # Before the first call, which MLflow repeats for minutes without an answer. A URI may have a password.
            logger.info("Writing to MLflow at %s", _USER_INFO.sub("//", self._client.tracking_uri))
            run = self._find(training) or self._create(training)
            self._run_id = run.info.run_id
            # Those that are missing, if it was killed after it had created the run.
            missing = [
                Param(_name(name), value[:MAX_VALUE])
                for name, value in parameters(training).items()
                if _name(name) not in run.data.params
            ]
            for start in range(0, len(missing), BATCH):
                self._client.log_batch(self._run_id, params=missing[start : start + BATCH])
        return int(run.data.tags.get(CURSOR_TAG, 0))

    def write(self, record: RoundRecord) -> None:
        """Logs the numbers of a round, and then that it is there."""
        from mlflow.entities import Metric

        with _errors():
            metrics = [
                Metric(_name(name), value, round(record.time * 1000), record.version) for name, value in record.values()
            ]
            # Killed before it had set the tag, it has written a part of the round that comes first.
            missing = [one for one in metrics if not self._has(one)] if self._is_first else metrics
            for start in range(0, len(missing), BATCH * 10):
                self._opened.log_batch(self._run_id, metrics=missing[start : start + BATCH * 10])
            self._opened.set_tag(self._run_id, CURSOR_TAG, str(record.sequence))
        self._is_first = False

    def end(self, record: EndRecord) -> None:
        """Ends the run."""
        with _errors():
            self._opened.set_tag(self._run_id, "fedround.end", record.state)
            if record.reason:
                self._opened.set_tag(self._run_id, "fedround.reason", f"{record.reason}: {record.message}"[:MAX_VALUE])
            status = _STATUS.get(record.state, "FINISHED")
            self._opened.set_terminated(self._run_id, status, round(record.time * 1000))
            self._opened.set_tag(self._run_id, CURSOR_TAG, str(record.sequence))

    def close(self) -> None:
        """Does nothing: each call is complete."""

    @property
    def _opened(self) -> MlflowClient:
        if self._client is None:
            raise RuntimeError("`begin` comes first.")
        return self._client

    def _find(self, training: Training) -> Run | None:
        experiment = self._opened.get_experiment_by_name(_experiment())
        if experiment is None:
            return None
        where = f"tags.`{TRAINING_TAG}` = '{training.training_id}'"
        found = self._opened.search_runs([experiment.experiment_id], where, order_by=["start_time ASC"])
        return found[0] if found else None

    def _create(self, training: Training) -> Run:
        experiment = self._opened.get_experiment_by_name(_experiment())
        experiment_id = experiment.experiment_id if experiment else self._opened.create_experiment(_experiment())
        tags = {
            TRAINING_TAG: training.training_id,
            "fedround.model_id": training.model_id,
            "fedround.actor_id": training.actor_id,
        }
        start = training.start_time if training.HasField("start_time") else training.create_time
        return self._opened.create_run(experiment_id, start.ToMilliseconds(), tags, training.spec.name or None)

    def _has(self, metric: Metric) -> bool:
        history = self._opened.get_metric_history(self._run_id, metric.key)
        return any((one.step, one.timestamp) == (metric.step, metric.timestamp) for one in history)


def _experiment() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def _name(name: str) -> str:
    """Returns a name that MLflow takes: it may become a path. Names that are changed stay different."""
    is_path = posixpath.normpath(name) == name and not name.startswith(("..", "/")) and name != "."
    if _ALLOWED.fullmatch(name) and is_path and len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{_FOREIGN.sub('_', name)[:MAX_NAME]}-{digest}"


@contextmanager
def _errors() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise failed(f"MLflow: {error.message}") from None
