"""Filters over all participants of a round: the server lists them in pages, and has no filter."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedround.v1.round_pb2 import Round, RoundParticipant
from fedround_client.dashboard.reader import Reader

KEPT_SECONDS = 10.0
"""How long the participants of a round are kept at most, unless one of them sends something, fails or connects."""
MAX_KEPT = 4
"""Rounds that are kept: one with 10,000 participants takes some 10 MB."""


@dataclass
class _Kept:
    participants: Sequence[RoundParticipant] = ()
    stamp: tuple[int, ...] = ()
    read_at: float = 0.0
    took: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class ParticipantMemory:
    """The participants of the rounds that visitors filter, for a few seconds. Thread-safe."""

    def __init__(self) -> None:
        """Creates an empty memory."""
        self._kept: OrderedDict[tuple[str, str, int], _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def participants(self, reader: Reader, current: Round) -> Sequence[RoundParticipant]:
        """Returns all participants of a round.

        Args:
            reader: Calls the server.
            current: The round as it is now.
        """
        key = (reader.account.account_id, current.training_id, current.number)
        stamp = (current.state, current.updates_arrived, current.num_failed, current.num_connected)
        with self._lock:
            kept = self._kept.setdefault(key, _Kept())
            self._kept.move_to_end(key)
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        # Whoever types fast asks several times at once; the first one reads for all.
        with kept.lock:
            if stamp != kept.stamp or time.monotonic() >= kept.read_at + KEPT_SECONDS:
                # Not more than half of the time, so that large rounds do not keep the server busy.
                time.sleep(max(0.0, kept.read_at + kept.took - time.monotonic()))
                begin = time.monotonic()
                kept.participants = list(reader.round_participants(current.training_id, current.number))
                kept.stamp, kept.read_at = stamp, time.monotonic()
                kept.took = kept.read_at - begin
            return kept.participants
