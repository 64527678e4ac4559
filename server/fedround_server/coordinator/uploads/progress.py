"""How much of each participant's update has arrived."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from fedround_server.blobs import Blobs, StagedRef, UploadRef


class Arriving(Protocol):
    """A file that is being received."""

    @property
    def size_bytes(self) -> int:
        """How much of it has arrived."""


@dataclass(slots=True)
class _Progress:
    """The latest attempt at a participant's update; without a file once it is over."""

    round: int
    ref: UploadRef | StagedRef
    arriving: Arriving | None
    sampled_bytes: int = 0


class UpdateProgress:
    """How much of each participant's update has arrived, also between two attempts."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._latest: dict[tuple[str, str], _Progress] = {}

    def bytes_arrived(self, training_id: str, number: int, user_id: str) -> int:
        """Returns how many bytes of a participant's update for a round are stored."""
        found = self._latest.get((training_id, user_id))
        if found is None or found.round != number:
            return 0
        if found.arriving is not None:
            return found.arriving.size_bytes
        return self._blobs.known_size(found.ref) if isinstance(found.ref, UploadRef) else 0

    def sample(self, min_bytes: int) -> dict[str, tuple[tuple[str, int, int], ...]]:
        """Returns how much of updates had arrived when they were sampled last, by user: training, round, bytes.

        Those that are arriving now are sampled. Those of less than `min_bytes` are left out.
        """
        found: dict[str, tuple[tuple[str, int, int], ...]] = {}
        for (training_id, user_id), one in self._latest.items():
            if one.arriving is not None:
                one.sampled_bytes = one.arriving.size_bytes
            if one.sampled_bytes >= min_bytes:
                found[user_id] = (*found.get(user_id, ()), (training_id, one.round, one.sampled_bytes))
        return found

    def forget(self, training_id: str) -> None:
        """Forgets the updates of a training."""
        for key in [key for key in self._latest if key[0] == training_id]:
            del self._latest[key]

    @contextmanager
    def watch(
        self, training_id: str, number: int, user_id: str, ref: UploadRef | StagedRef, arriving: Arriving
    ) -> Iterator[None]:
        """Shows the progress of an update that the block receives."""
        key = (training_id, user_id)
        own = _Progress(number, ref, arriving)
        self._latest[key] = own
        try:
            yield
        finally:
            # A later attempt, for this round or the next, may have replaced it.
            own.arriving = None
