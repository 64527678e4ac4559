"""Jobs that kill the process they run in."""

import os
import signal
from pathlib import Path

from fedround_server.engine import worker
from fedround_server.engine.jobs import AggregationJob, StagedResult
from unit.paths import Paths


def die_once(marker: Path) -> int:
    """Kills the first process that does it, and returns the id of the second."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def aggregate_and_die_once(marker: Path, files: Paths, job: AggregationJob) -> StagedResult:
    """Aggregates; the first process is killed between writing the whole file and reporting it."""
    if not marker.exists():
        marker.touch()
        worker.drop_cached_pages = be_killed
    return worker.run_aggregation(files, job)


def be_killed(_: object = None) -> None:
    """Kills the process with SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)
