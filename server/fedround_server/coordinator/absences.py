"""Looks for participants without a connection that open rounds no longer wait for."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta

from fedround_server.coordinator.context import Context
from fedround_server.domain.rounds.round import AwaitedMember, Round, UnfinishedRound

INTERVAL = timedelta(seconds=0.5)


class Absences:
    """The open rounds, with the members that they wait for only while these have a connection.

    Time without a connection counts from the start of the server at the earliest: an earlier process knew more.
    """

    def __init__(self, context: Context, exclude: Callable[[str, int, Mapping[str, str]], Awaitable[None]]) -> None:
        """Creates it without any round.

        Args:
            context: The parts of the server.
            exclude: Called with a training's id, a round's number, and a message for the actor by absent user.
        """
        self._context = context
        self._exclude = exclude
        self._start = context.clock.now()
        # By training, the number and attempt of the round, and its members once they are loaded.
        self._rounds: dict[str, tuple[int, int]] = {}
        self._members: dict[str, list[AwaitedMember]] = {}
        self._stopped = False

    def stop(self) -> None:
        """Stops looking: a server that is draining ends all connections."""
        self._stopped = True

    def watch(self, current: Round | UnfinishedRound) -> bool:
        """Watches an open round, in place of an earlier one of the training, or an earlier attempt at it.

        Returns:
            Whether it was not watched.
        """
        key = current.number, current.attempt
        if self._rounds.get(current.training_id) == key:
            return False
        self._rounds[current.training_id] = key
        self._members.pop(current.training_id, None)
        return True

    def forget(self, training_id: str) -> None:
        """Stops watching the round of a training."""
        self._rounds.pop(training_id, None)
        self._members.pop(training_id, None)

    def watched(self) -> list[str]:
        """Returns the trainings whose rounds are watched."""
        return list(self._rounds)

    async def look(self, training_id: str) -> None:
        """Looks for absent members of a watched round."""
        key = self._rounds.get(training_id)
        if key is None:
            return
        members = self._members.get(training_id)
        if members is None:
            members = await self._context.store.rounds.awaited(training_id, key[0])
            if self._rounds.get(training_id) != key:
                return
            self._members[training_id] = members
        now = self._context.clock.now()
        absent = {one.user_id: self._message(one.user_id) for one in members if self._is_absent(one, now)}
        if absent and not self._stopped:
            await self._exclude(training_id, key[0], absent)
            if self._rounds.get(training_id) == key:
                self._members[training_id] = [one for one in members if one.user_id not in absent]

    def _is_absent(self, member: AwaitedMember, now: datetime) -> bool:
        presence = self._context.presence
        if presence.is_connected(member.user_id, now):
            return False
        times = (self._start, member.since, presence.last_seen(member.user_id, now))
        return now - max(time for time in times if time is not None) >= member.limit

    def _message(self, user_id: str) -> str:
        seen = self._context.presence.last_seen(user_id, self._context.clock.now())
        if seen is None:
            return "no connection since the start of the server"
        return f"no connection since {seen.isoformat(timespec='seconds')}"
