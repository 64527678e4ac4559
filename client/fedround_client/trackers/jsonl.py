"""JSON Lines: a line with the parameters, one for each round, and one for the end."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedround.v1.training_pb2 import Training
from fedround_client.trackers.append_file import AppendFile, is_beginning
from fedround_client.trackers.output import failed
from fedround_client.trackers.tracker import EndRecord, RoundRecord, file_name, iso_time, parameters


class JsonlTracker:
    """Appends to a file of JSON objects; those of rounds and of the end have the sequence."""

    def __init__(self, output: str = "") -> None:
        """Takes the path of the file; by default the training's name and id with the suffix .jsonl."""
        self._output = output
        self._file: AppendFile | None = None

    def begin(self, training: Training) -> int:
        """Opens the file; cuts off a last line that is not whole."""
        path = Path(self._output or f"{file_name(training)}.jsonl")
        self._file = AppendFile(path)
        lines = self._file.lines()
        start = json.dumps({"type": "run", "training_id": training.training_id}).encode()[:-1]
        if not lines or (len(lines) == 1 and not lines[0].endswith(b"\n") and is_beginning(lines[0], start)):
            self._file.cut(b"".join(lines))
            self._append("run", _run(training))
            return 0
        found = [_parsed(line) for line in lines]
        if not lines[0].startswith(start) or None in found[:-1]:
            raise failed(f"{path} does not belong to the training {training.training_id}: choose another --output.")
        if found[-1] is None:
            self._file.cut(lines[-1])
        return max((line["sequence"] for line in found if line is not None and "sequence" in line), default=0)

    def write(self, record: RoundRecord) -> None:
        """Appends a round."""
        self._append("round", {**asdict(record), "time": iso_time(record.time)})

    def end(self, record: EndRecord) -> None:
        """Appends the end."""
        self._append("end", {**asdict(record), "time": iso_time(record.time)})

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _append(self, kind: str, fields: dict[str, Any]) -> None:
        if self._file is None:
            raise RuntimeError("`begin` comes first.")
        line = json.dumps({"type": kind, **_finite(fields)}, allow_nan=False)
        self._file.append(line.encode() + b"\n")


def _run(training: Training) -> dict[str, Any]:
    return {
        "training_id": training.training_id,
        "name": training.spec.name,
        "actor_id": training.actor_id,
        "model_id": training.model_id,
        "parameters": parameters(training),
    }


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Returns the object of a line; None if it is not whole: a machine that went down may leave any bytes."""
    if not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _finite(value: Any) -> Any:
    """Returns a value in which numbers that JSON does not have are null."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
