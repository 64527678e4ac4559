"""Opens rounds that wait for connections, once enough participants are connected."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

from fedround_server.coordinator.context import Context
from fedround_server.domain.errors import Unavailable
from fedround_server.domain.rounds.round import PendingRound, Round, UnfinishedRound

INTERVAL = timedelta(seconds=0.2)


class Openings:
    """The pending rounds, at most one per training, with the participants whose connections are counted.

    After a restart of the server, a pending round waits until participants have connected again.
    """

    def __init__(self, context: Context, follow_up: Callable[[str], Awaitable[None]]) -> None:
        """Creates it without any round; `follow_up` is called with a training's id after its round was opened."""
        self._context = context
        self._follow_up = follow_up
        # By training, the number of the round; what it waits for, once that is loaded; with whom it did not open.
        self._rounds: dict[str, int] = {}
        self._loaded: dict[str, PendingRound] = {}
        self._tried: dict[str, frozenset[str]] = {}
        self._stopped = False

    def stop(self) -> None:
        """Leaves pending rounds to the next start: their participants lose their subscriptions."""
        self._stopped = True

    def watch(self, current: Round | UnfinishedRound) -> None:
        """Watches a pending round; loads its participants anew."""
        self.forget(current.training_id)
        self._rounds[current.training_id] = current.number

    def forget(self, training_id: str) -> None:
        """Stops watching the round of a training."""
        self._rounds.pop(training_id, None)
        self._loaded.pop(training_id, None)
        self._tried.pop(training_id, None)

    def watched(self) -> list[str]:
        """Returns the trainings whose rounds are watched."""
        return list(self._rounds)

    async def look(self, training_id: str) -> None:
        """Opens a watched round if enough participants are connected."""
        number = self._rounds.get(training_id)
        if number is None or self._stopped:
            return
        if training_id not in self._loaded:
            found = await self._context.store.rounds.pending(training_id, number)
            if self._rounds.get(training_id) != number:
                return
            if found is None:
                self.forget(training_id)
                return
            self._loaded[training_id] = found
        pending = self._loaded[training_id]
        now, presence = self._context.clock.now(), self._context.presence
        connected = frozenset(one for one in pending.participant_ids if presence.is_listening(one, now))
        if len(connected) < pending.wanted or connected == self._tried.get(training_id):
            return
        self._tried[training_id] = connected
        try:
            opened = await self._context.store.rounds.open(training_id, number, connected, now)
        except Unavailable:
            # It may have been opened all the same: the next look finds out.
            self._tried.pop(training_id, None)
            raise
        if opened:
            if self._rounds.get(training_id) == number:
                self.forget(training_id)
            try:
                await self._follow_up(training_id)
            finally:
                self._context.hub.notify(training_id)
