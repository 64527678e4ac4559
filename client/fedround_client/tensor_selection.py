"""Which tensors of a model an update has, and which each participant keeps in a file of its own."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fedround.v1.event_pb2 import RoundStarted
from fedround_client.safetensors_reader import SafetensorsReader
from fedround_client.safetensors_stream import ArraySource, SafetensorsStream, TensorSource
from fedround_client.tensor_types import Framework, TensorError

READ_BYTES = 1 << 20


@dataclass(frozen=True)
class TensorSelection:
    """Globs over the names of tensors, as `fnmatch.fnmatchcase` matches them.

    Attributes:
        trainable: What an update has; empty for all tensors of the global model but the private ones.
        private: What each participant keeps.
    """

    trainable: tuple[str, ...] = ()
    private: tuple[str, ...] = ()

    @classmethod
    def of(cls, started: RoundStarted) -> TensorSelection:
        """Returns the selection of a round."""
        return cls(tuple(started.trainable), tuple(started.private))

    @property
    def is_partial(self) -> bool:
        """Whether an update has a part of the model's tensors."""
        return bool(self.trainable or self.private)

    def trains(self, name: str) -> bool:
        """Returns whether an update has a tensor of the global model."""
        return matches(name, self.trainable) if self.trainable else not matches(name, self.private)

    def keeps(self, name: str) -> bool:
        """Returns whether a tensor is private."""
        return matches(name, self.private)


def matches(name: str, globs: Iterable[str]) -> bool:
    """Returns whether a name matches one of some globs."""
    return any(fnmatchcase(name, glob) for glob in globs)


def default_private_folder() -> Path:
    """Returns the folder where private tensors are kept unless another one is given."""
    return Path.home() / ".fedround" / "private"


class PrivateTensors:
    """The private tensors of a participant, in one file for each training."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Creates nothing yet.

        Args:
            folder: Where the files are; several participants may share it.
        """
        self._folder = None if folder is None else Path(folder)

    def path(self, user_id: str, training_id: str) -> Path:
        """Returns the file of a participant in a training.

        Raises:
            ValueError: An id, which the server chose, is no UUID.
            RuntimeError: No folder was given, and the user of this process has no home folder.
        """
        folder = default_private_folder() if self._folder is None else self._folder
        return folder / f"{uuid.UUID(user_id)}.{uuid.UUID(training_id)}.safetensors"

    def load(self, path: Path, framework: Framework | None) -> dict[str, Any]:
        """Returns the private tensors in a file; none if there is no file.

        Raises:
            TensorError: The file is damaged.
            OSError: The file cannot be read.
        """
        if not path.exists():
            return {}
        try:
            return read_file(path, framework)
        except TensorError as error:
            raise TensorError(
                f"The file of private tensors {path} is damaged: {error} Restore it from a backup, or remove it to"
                " begin again with the values of the model."
            ) from error

    def save(self, path: Path, tensors: Iterable[ArraySource], metadata: Mapping[str, str]) -> None:
        """Replaces a file, durably.

        Raises:
            OSError: The file cannot be written.
        """
        write_file(path, tensors, metadata)


def write_file(path: Path, tensors: Iterable[TensorSource], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, or replaces it, durably.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        with part.open("xb") as file:
            for piece in SafetensorsStream(tensors, metadata).pieces():
                file.write(piece)
                del piece
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_file(path: Path, framework: Framework | None) -> dict[str, Any]:
    """Returns the tensors of a safetensors file.

    Raises:
        TensorError: It is none.
        OSError: It cannot be read.
    """
    reader = SafetensorsReader(framework)
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            reader.write(data)
    return reader.tensors()
