"""Trackers: where `fedround track` and `Client.track` write the course of a training; docs/trackers.md.

A new one is a module with a class that has the methods of Tracker, and a line in TRACKERS.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Literal, TypeAlias

from fedround_client.trackers.output import failed
from fedround_client.trackers.tracker import EndRecord, RoundRecord, Tracker, file_name, parameters

__all__ = ["TRACKERS", "EndRecord", "RoundRecord", "Tracker", "TrackerName", "file_name", "make_tracker", "parameters"]

TrackerName: TypeAlias = Literal["csv", "jsonl", "mlflow", "tensorboard"]

TRACKERS = {
    "csv": ("fedround_client.trackers.csv_file", "CsvTracker", ""),
    "jsonl": ("fedround_client.trackers.jsonl", "JsonlTracker", ""),
    "mlflow": ("fedround_client.trackers.mlflow", "MlflowTracker", "mlflow"),
    "tensorboard": ("fedround_client.trackers.tensorboard", "TensorboardTracker", "tensorboard"),
}
"""Module, class, and the package that it needs, by name; the extra of that package has the same name."""


def make_tracker(name: str, output: str = "") -> Tracker:
    """Returns a tracker, which has opened nothing yet.

    Args:
        name: A key of TRACKERS.
        output: Where it writes: a file, a folder or a URI; by default as docs/trackers.md says.

    Raises:
        ValueError: There is no such tracker.
        TrackerFailed: A package that it needs is not installed; the message says how to install it.
    """
    if name not in TRACKERS:
        raise ValueError(f"There is no tracker {name!r}: choose one of {', '.join(TRACKERS)}, or pass an object.")
    module, class_name, package = TRACKERS[name]
    if package and find_spec(package) is None:
        raise failed(f'The tracker {name} needs {package}, not installed here: pip install "fedround[{package}]"')
    made: Tracker = getattr(import_module(module), class_name)(output)
    return made
