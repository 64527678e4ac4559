"""The status of a round as its actor sees it: who is missing, and when the round will probably end."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from fedround_server.coordinator.aggregation import Aggregations
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.uploads.progress import UpdateProgress
from fedround_server.domain import forecast
from fedround_server.domain.rounds.round import (
    FIRST_PAGE,
    MemberPage,
    RegisteredParticipant,
    Round,
    RoundMember,
    RoundState,
    RoundView,
)


@dataclass(frozen=True, slots=True)
class MemberView:
    """A member of a round's cohort, as the actor sees it.

    Attributes:
        member: What the store knows of the member.
        last_seen: When the member was last connected, if known.
        subscribed: Whether the member has a subscription open, or has checked in and is expected back.
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
        members: A page of its cohort, and the first member behind it; none in a summary.
        forecast_end: When its present attempt is expected to end; None if that is not known, and in a summary.
        damage: Which file has to be restored before its result can be computed; None if none is known to be damaged.
        num_connected: How many registered participants are listening.
        not_connected: Of a pending round, the registered participants that are not; when each was seen last. Left out
            of a summary.
        page: Which members these are.
    """

    view: RoundView
    members: tuple[MemberView, ...] = ()
    forecast_end: datetime | None = None
    damage: str | None = None
    num_connected: int = 0
    not_connected: tuple[RegisteredParticipant, ...] = ()
    page: MemberPage = FIRST_PAGE


class RoundStatus:
    """Explains rounds to their actors."""

    def __init__(self, context: Context, progress: UpdateProgress, aggregations: Aggregations) -> None:
        self._context = context
        self._aggregations = aggregations
        self._progress = progress

    async def explain(
        self, training_id: str, number: int | None, actor_id: str, page: MemberPage = FIRST_PAGE
    ) -> Explanation:
        """Returns a round, by default the current one, with what is known of a page of its members.

        The first page has a forecast of the round's end, and who is not connected: these depend on all members.

        Raises:
            FedroundError: As described for `RoundVerbs.explain`.
        """
        if page.as_of is None:
            page = replace(page, as_of=self._context.clock.now())
        found = await self._context.store.rounds.explain(training_id, number, actor_id, page)
        now, presence = self._context.clock.now(), self._context.presence
        arrivals = [one.arrive_time or forecast.arrival(one.ask_time, one.durations, now) for one in found.times]
        ends = [time for time in (found.round.deadline, found.round.wait_end) if time is not None]
        not_connected = tuple(
            replace(one, seen_time=presence.last_seen(one.user_id, now) or one.seen_time)
            for one in found.awaited
            if not presence.is_listening(one.user_id, now)
        )
        return replace(
            self._summary(found),
            members=tuple(self._view(member, found.round, now) for member in found.members),
            forecast_end=forecast.end(arrivals, found.round.expected, min(ends, default=None)) if arrivals else None,
            not_connected=not_connected,
            page=page,
        )

    async def summarize(self, training_id: str, number: int | None, actor_id: str) -> Explanation:
        """Returns a round, by default the current one, without what is known of single members.

        Raises:
            FedroundError: As described for `RoundVerbs.summarize`.
        """
        return self._summary(await self._context.store.rounds.summarize(training_id, number, actor_id))

    async def page(self, training_id: str, actor_id: str, before: int | None, limit: int) -> list[Explanation]:
        """Returns rounds like `summarize`, the latest first, below a number.

        Raises:
            FedroundError: As described for `RoundVerbs.page`.
        """
        found = await self._context.store.rounds.page(training_id, actor_id, before, limit)
        return list(map(self._summary, found))

    def _summary(self, found: RoundView) -> Explanation:
        is_closed = found.round.state is RoundState.AGGREGATING
        damage = self._aggregations.damage.get(found.round.training_id) if is_closed else None
        now, presence = self._context.clock.now(), self._context.presence
        num_connected = sum(presence.is_listening(one, now) for one in found.participant_ids)
        return Explanation(found, damage=damage, num_connected=num_connected)

    def _view(self, member: RoundMember, found: Round, now: datetime) -> MemberView:
        presence, user_id, missing = self._context.presence, member.user_id, member.arrive_time is None
        return MemberView(
            member=member,
            last_seen=presence.last_seen(user_id, now) or member.seen_time,
            subscribed=presence.is_listening(user_id, now),
            uploaded_bytes=self._uploaded_bytes(user_id, found) if missing else 0,
            forecast=forecast.arrival(member.ask_time, member.durations, now) if missing else None,
            attributes=presence.attributes(user_id),
        )

    def _uploaded_bytes(self, user_id: str, found: Round) -> int:
        elsewhere = self._context.presence.elsewhere
        return max(
            self._progress.bytes_arrived(found.training_id, found.number, user_id),
            elsewhere.uploaded_bytes(user_id, found.training_id, found.number),
        )
