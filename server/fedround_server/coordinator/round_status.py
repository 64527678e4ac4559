"""The status of a round as its actor sees it: who is missing, and when the round will probably end."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from fedround_server.coordinator.aggregation import Aggregations
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.uploads.progress import UpdateProgress
from fedround_server.domain import forecast
from fedround_server.domain.rounds.round import RegisteredParticipant, Round, RoundMember, RoundState, RoundView


@dataclass(frozen=True, slots=True)
class MemberView:
    """A member of a round's cohort, as the actor sees it.

    Attributes:
        member: What the store knows of the member.
        last_seen: When the member was last connected, if known.
        subscribed: Whether the member has a subscription open.
        uploaded_bytes: How many bytes of its update have arrived.
        forecast: When its update is expected; None if it has arrived, or if there is no history.
        attributes: What the member says of itself.
    """

    member: RoundMember
    last_seen: datetime | None
    subscribed: bool
    uploaded_bytes: int
    forecast: datetime | None
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a round is waiting.

    Attributes:
        view: The round.
        members: Its cohort.
        forecast_end: When its present attempt is expected to end; None if that is not known.
        damage: Which file has to be restored before its result can be computed; None if none is known to be damaged.
        num_connected: How many registered participants have a subscription open.
        not_connected: Of a pending round, the registered participants that have none; when each was seen last.
    """

    view: RoundView
    members: tuple[MemberView, ...]
    forecast_end: datetime | None
    damage: str | None = None
    num_connected: int = 0
    not_connected: tuple[RegisteredParticipant, ...] = ()


class RoundStatus:
    """Explains rounds to their actors."""

    def __init__(self, context: Context, progress: UpdateProgress, aggregations: Aggregations) -> None:
        self._context = context
        self._aggregations = aggregations
        self._progress = progress

    async def explain(self, training_id: str, number: int | None, actor_id: str) -> Explanation:
        """Returns a round, by default the current one, with what is known of its members.

        Raises:
            FedroundError: As described for `RoundVerbs.explain`.
        """
        found = await self._context.store.rounds.explain(training_id, number, actor_id)
        now = self._context.clock.now()
        is_open = found.round.state is RoundState.OPEN
        members = tuple(self._view(member, found.round, now) for member in found.members)
        arrivals = [one.member.arrive_time or one.forecast for one in members]
        ends = [time for time in (found.round.deadline, found.round.wait_end) if time is not None]
        forecast_end = forecast.end(arrivals, found.round.expected, min(ends, default=None)) if is_open else None
        num_connected = sum(map(self._context.presence.is_listening, found.participant_ids))
        is_closed = found.round.state is RoundState.AGGREGATING
        damage = self._aggregations.damage.get(training_id) if is_closed else None
        presence = self._context.presence
        not_connected = tuple(
            replace(one, seen_time=presence.last_seen(one.user_id, now) or one.seen_time)
            for one in found.awaited
            if not presence.is_listening(one.user_id)
        )
        return Explanation(found, members, forecast_end, damage, num_connected, not_connected)

    def _view(self, member: RoundMember, found: Round, now: datetime) -> MemberView:
        presence, user_id, missing = self._context.presence, member.user_id, member.arrive_time is None
        return MemberView(
            member=member,
            last_seen=presence.last_seen(user_id, now) or member.seen_time,
            subscribed=presence.is_listening(user_id),
            uploaded_bytes=self._progress.bytes_arrived(found.training_id, found.number, user_id) if missing else 0,
            forecast=forecast.arrival(member.ask_time, member.durations, now) if missing else None,
            attributes=presence.attributes(user_id),
        )
