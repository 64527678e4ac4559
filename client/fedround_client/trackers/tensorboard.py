"""TensorBoard: event files in a folder for each training, with its metrics by version."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any, BinaryIO

from fedround.v1.training_pb2 import Training
from fedround_client.logs import get_logger
from fedround_client.trackers.output import lock, sync_folder
from fedround_client.trackers.tracker import EndRecord, RoundRecord, file_name, parameters

logger = get_logger(__name__)

FOLDER = "runs"
"""Where the folders of trainings are by default."""
CURSOR = "fedround/sequence"
"""The tag of the value that has the sequence of a record; no page of TensorBoard shows it."""
PARAMETERS = "parameters/text_summary"
END = "end/text_summary"


class TensorboardTracker:
    """Writes an event for each round. An event is whole or is not read, and begins a new file after a restart."""

    def __init__(self, output: str = "") -> None:
        """Takes the folder that `tensorboard --logdir` shows; each training has a folder in it."""
        self._output = Path(output or FOLDER)
        self._folder = self._output
        self._lock: BinaryIO | None = None
        self._file: BinaryIO | None = None

    def begin(self, training: Training) -> int:
        """Reads what there is."""
        self._folder = self._output / file_name(training)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "fedround.lock"
        self._lock = path.open("ab")
        lock(self._lock, path)
        logger.info("Writing to %s", self._folder)
        cursors, has_parameters = self._read()
        if not has_parameters:
            start = training.start_time if training.HasField("start_time") else training.create_time
            rows = "".join(f"| {name} | {value} |\n" for name, value in parameters(training).items())
            self._append(
                start.ToNanoseconds() / 1e9, 0, 0, {}, {PARAMETERS: f"| parameter | value |\n|---|---|\n{rows}"}
            )
        return max(cursors, default=0)

    def write(self, record: RoundRecord) -> None:
        """Appends the numbers of a round; TensorBoard keeps them as float32."""
        self._append(record.time, record.version, record.sequence, dict(record.values()), {})

    def end(self, record: EndRecord) -> None:
        """Appends how the training ended, as a text."""
        text = ": ".join(filter(None, (record.state, record.reason, record.message)))
        self._append(record.time, 0, record.sequence, {}, {END: text})

    def close(self) -> None:
        """Closes the file."""
        for file in (self._file, self._lock):
            if file is not None:
                file.close()

    def _read(self) -> tuple[list[int], bool]:
        """Returns the sequences that are there, and whether the parameters are."""
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        cursors, has_parameters = [], False
        for path in sorted(self._folder.glob("*.tfevents.*")):
            for event in EventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    has_parameters = has_parameters or value.tag == PARAMETERS
                    if value.tag == CURSOR:
                        cursors.append(int(value.metadata.plugin_data.content))
        return cursors, has_parameters

    def _append(self, when: float, step: int, sequence: int, numbers: dict[str, float], texts: dict[str, str]) -> None:
        """Appends one event, and returns once it is on the disk."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        values = [Summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
        values += [_value(name, "text", text) for name, text in texts.items()]
        if sequence:
            values.append(_value(CURSOR, "fedround", str(sequence)))
        if self._file is None:
            self._file = self._created()
            RecordWriter(self._file).write(Event(wall_time=when, file_version="brain.Event:2").SerializeToString())
        event = Event(wall_time=when, step=step, summary=Summary(value=values))
        RecordWriter(self._file).write(event.SerializeToString())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _created(self) -> BinaryIO:
        # TensorBoard reads files in the order of their names, and the last one while it grows.
        name = f"events.out.tfevents.{time.time_ns() // 10**6:013d}.{socket.gethostname()}.{os.getpid()}.0"
        file = (self._folder / name).open("xb")
        sync_folder(self._folder)
        return file


def _value(tag: str, plugin: str, text: str) -> Any:
    """Returns a value with a text, for a plugin of TensorBoard."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    data = SummaryMetadata.PluginData(plugin_name=plugin, content=text.encode() if tag == CURSOR else b"")
    return Summary.Value(
        tag=tag,
        metadata=SummaryMetadata(plugin_data=data),
        tensor=TensorProto(dtype=DT_STRING, string_val=[text.encode()]),
    )
