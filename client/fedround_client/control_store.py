"""Where a participant keeps its control variates, so that they survive a restart."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedround_client.safetensors_stream import TensorSource
from fedround_client.tensor_selection import read_file, write_file
from fedround_client.tensor_types import Framework

_ACCEPTED = re.compile(r"(\d+)\.safetensors")
_PENDING = re.compile(r"(\d+)\.pending")


class ControlStore:
    """The control variates of a participant in one training, one file for each round that changed them.

    A file is written before its update is sent, as pending, and renamed once the update is accepted. If the process
    dies between the two, the request tells later whether it was. Those of the last two accepted rounds are kept: a
    round may ask for its update anew, which then starts from the one before.
    """

    def __init__(self, folder: Path) -> None:
        """Creates nothing yet."""
        self._folder = folder

    def load(self, number: int, framework: Framework) -> dict[str, Any]:
        """Returns what the last accepted round before one has left; nothing if there is none.

        Raises:
            TensorError: The file is damaged.
            OSError: It cannot be read.
        """
        accepted = [one for one in self._numbers(_ACCEPTED) if one < number]
        return read_file(self._accepted(max(accepted)), framework) if accepted else {}

    def prepare(self, number: int, tensors: Iterable[TensorSource], request: bytes) -> None:
        """Keeps what counts if the update of a round is accepted, durably, with the request that submits it.

        Raises:
            OSError: It cannot be written.
        """
        self.forget(number)
        write_file(self._pending(number), tensors)
        path = self._request(number)
        with path.open("wb") as file:
            file.write(request)
            file.flush()
            os.fsync(file.fileno())

    def accept(self, number: int) -> None:
        """Has a pending one count, if there is one, and removes what is not needed any more."""
        if self._pending(number).exists():
            self._pending(number).replace(self._accepted(number))
        self._request(number).unlink(missing_ok=True)
        for old in sorted(self._numbers(_ACCEPTED))[:-2]:
            self._accepted(old).unlink(missing_ok=True)

    def undecided(self, number: int) -> Iterator[tuple[int, bytes]]:
        """Yields the earlier rounds of which it is not known whether their updates were accepted, with the requests."""
        for one in sorted(self._numbers(_PENDING)):
            if one >= number:
                continue
            try:
                yield one, self._request(one).read_bytes()
            except FileNotFoundError:
                # The process died before anything was sent.
                self.forget(one)

    def forget(self, number: int) -> None:
        """Removes what a round has left: its update does not count."""
        for path in (self._accepted(number), self._request(number), self._pending(number)):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes all files: the training has ended."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _numbers(self, pattern: re.Pattern[str]) -> list[int]:
        with suppress(FileNotFoundError):
            names = (pattern.fullmatch(path.name) for path in self._folder.iterdir())
            return [int(found[1]) for found in names if found]
        return []

    def _accepted(self, number: int) -> Path:
        return self._folder / f"{number}.safetensors"

    def _pending(self, number: int) -> Path:
        return self._folder / f"{number}.pending"

    def _request(self, number: int) -> Path:
        return self._folder / f"{number}.request"
