"""CSV: a line for each round, and a column for each metric."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from fedround.v1.training_pb2 import Training
from fedround_client.csv_cells import harmless
from fedround_client.errors import TrackerFailed
from fedround_client.trackers.append_file import AppendFile, is_beginning
from fedround_client.trackers.output import failed
from fedround_client.trackers.tracker import EndRecord, RoundRecord, file_name, iso_time

_COLUMNS: Mapping[str, Callable[[RoundRecord], object]] = {
    "sequence": lambda record: record.sequence,
    "time": lambda record: iso_time(record.time),
    # For people, the first round is round 1.
    "round": lambda record: record.number + 1,
    "kind": lambda record: record.kind,
    "version": lambda record: record.version,
    "updates": lambda record: record.num_updates,
    "failed": lambda record: record.num_failed,
    "seconds": lambda record: record.seconds,
    "epsilon": lambda record: record.epsilon,
}
_TRAINING = "training_id"
_FIRST = (_TRAINING, *_COLUMNS)
_START = ",".join(_FIRST).encode()


class CsvTracker:
    """Appends to a CSV file. A metric that is reported for the first time gets a column: the file is replaced."""

    def __init__(self, output: str = "") -> None:
        """Takes the path of the file; by default the training's name and id with the suffix .csv."""
        self._output = output
        self._file: AppendFile | None = None
        self._training_id = ""
        self._header: list[str] = []

    def begin(self, training: Training) -> int:
        """Opens the file; cuts off a last line that is not whole."""
        path = Path(self._output or f"{file_name(training)}.csv")
        self._file, self._training_id = AppendFile(path), training.training_id
        self._header = [*_FIRST, *map(_title, training.spec.metric_names)]
        lines = self._file.lines()
        if not lines or (len(lines) == 1 and not lines[0].endswith(b"\n") and is_beginning(lines[0], _START)):
            self._file.cut(b"".join(lines))
            self._file.append(_line(self._header))
            return 0
        header, *rows = _rows(lines)
        if tuple(header[: len(_FIRST)]) != _FIRST or any(row[0] != self._training_id for row in rows[:-1]):
            raise self._foreign(path)
        self._header = header
        if rows and not (lines[-1].endswith(b"\n") and len(rows[-1]) == len(header) and rows[-1][1].isdecimal()):
            self._file.cut(lines[-1])
            rows.pop()
        if rows and rows[-1][0] != self._training_id:
            raise self._foreign(path)
        return max((int(row[1]) for row in rows), default=0)

    def write(self, record: RoundRecord) -> None:
        """Appends a round."""
        metrics = {_title(name): value for name, value in record.metrics.items()}
        self._add_columns([title for title in metrics if title not in self._header])
        first = [self._training_id, *(value(record) for value in _COLUMNS.values())]
        rest = [metrics.get(title, "") for title in self._header[len(_FIRST) :]]
        self._written.append(_line(["" if cell is None else harmless(cell) for cell in (*first, *rest)]))

    def end(self, record: EndRecord) -> None:
        """Does nothing: the file has rounds only."""

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    @property
    def _written(self) -> AppendFile:
        if self._file is None:
            raise RuntimeError("`begin` comes first.")
        return self._file

    def _add_columns(self, titles: list[str]) -> None:
        if not titles:
            return
        _, *rows = _rows(self._written.lines())
        self._header = [*self._header, *titles]
        wider = [row + [""] * (len(self._header) - len(row)) for row in rows]
        self._written.replace(b"".join(map(_line, [self._header, *wider])))

    def _foreign(self, path: Path) -> TrackerFailed:
        return failed(f"{path} does not belong to the training {self._training_id}: choose another --output.")


def _title(metric: str) -> str:
    """Returns the title of a metric's column; a metric may have the name of another column."""
    return harmless(f"{metric} (metric)" if metric in _FIRST else metric)


def _line(cells: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _rows(lines: Iterable[bytes]) -> list[list[str]]:
    return list(csv.reader(line.decode(errors="replace") for line in lines))
