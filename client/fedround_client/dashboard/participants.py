"""Filters over all participants of a round: the server lists them in pages, and has no filter."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedround.v1.round_pb2 import RoundParticipant
from fedround_client.dashboard.reader import Reader
from fedround_client.dashboard.sessions import Account

LEAST_SECONDS = 2.0
"""How long the participants of a round are kept at least, for the next letter of a name."""
REST_FACTOR = 5.0
"""They are kept so many times longer than it took to read them, so that large rounds do not keep the server busy."""
MAX_KEPT = 4
"""Rounds that are kept: one with 10,000 participants takes some 10 MB."""


@dataclass
class _Kept:
    participants: Sequence[RoundParticipant] = ()
    expires: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class ParticipantMemory:
    """The participants of the rounds that visitors filter, for a few seconds. Thread-safe."""

    def __init__(self) -> None:
        """Creates an empty memory."""
        self._kept: OrderedDict[tuple[Account, str, int], _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def participants(self, reader: Reader, training_id: str, number: int) -> Sequence[RoundParticipant]:
        """Returns all participants of a round."""
        key = (reader.account, training_id, number)
        with self._lock:
            kept = self._kept.setdefault(key, _Kept())
            self._kept.move_to_end(key)
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        # Whoever types fast asks several times at once; the first one reads for all.
        with kept.lock:
            begin = time.monotonic()
            if begin >= kept.expires:
                kept.participants = list(reader.round_participants(training_id, number))
                took = time.monotonic() - begin
                kept.expires = time.monotonic() + max(LEAST_SECONDS, REST_FACTOR * took)
            return kept.participants
