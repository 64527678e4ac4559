"""CSV: a line for each round, and a column for each metric."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from fedround.v1.training_pb2 import Training
from fedround_client.csv_cells import harmless
from fedround_client.trackers.append_file import AppendFile
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
        lines = self._file.lines()
        if not lines:
            self._header = [*_FIRST, *map(_title, training.spec.metric_names)]
            self._file.append(_line(self._header))
            return 0
        self._header, *rows = _rows(lines)
        if rows and not self._is_whole(rows[-1]):
            # A machine that went down while it was written may leave any bytes.
            self._file.cut(lines[-1])
            rows.pop()
        is_ours = tuple(self._header[: len(_FIRST)]) == _FIRST and all(map(self._is_whole, rows))
        if not is_ours or any(row[0] != self._training_id for row in rows):
            raise failed(f"{path} does not belong to the training {self._training_id}: choose another --output.")
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

    def _is_whole(self, row: list[str]) -> bool:
        return len(row) == len(self._header) and row[1].isdecimal()


def _title(metric: str) -> str:
    """Returns the title of a metric's column; a metric may have the name of another column."""
    return harmless(f"{metric} (metric)" if metric in _FIRST else metric)


def _line(cells: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _rows(lines: Iterable[bytes]) -> list[list[str]]:
    return list(csv.reader(line.decode(errors="replace") for line in lines))
