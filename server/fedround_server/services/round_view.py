"""Writes a Round message: what a round waits for, as its actor sees it."""

from collections.abc import Sequence
from itertools import islice

from fedround.v1 import round_pb2, training_pb2
from fedround_server.coordinator.round_status import Explanation, MemberView
from fedround_server.domain.aggregation import UpdateFacts
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.policy import OnMissed
from fedround_server.domain.rejected_update import RejectedUpdate
from fedround_server.domain.rounds.round import MemberOrder, MemberPage, RegisteredParticipant, RoundState, RoundView
from fedround_server.domain.user import original_name
from fedround_server.services import convert, pages

MAX_MEMBERS = 1000


def read_page(request: round_pb2.GetRoundRequest) -> MemberPage:
    """Decodes which of a round's members are wanted.

    Raises:
        FieldInvalid: The size is negative, the token is none of this list, or it comes without the round.
    """
    limit = pages.parse_size(request.page_size, MAX_MEMBERS)
    position = pages.parse_token(request.page_token, int, int, str)
    if position is None:
        return MemberPage(limit)
    if not request.HasField("round"):
        raise FieldInvalid("round", "is required with a page_token: the round that the first page was of")
    micros, place, name = position
    if place not in list(MemberOrder):
        raise FieldInvalid("page_token", pages.FOREIGN)
    return MemberPage(limit, (MemberOrder(place), name), pages.parse_micros(micros))


def write_page(explanation: Explanation) -> round_pb2.GetRoundResponse:
    """Encodes a round with a page of its members, as far as there is room."""
    page = explanation.page

    def token_of(view: MemberView) -> str:
        as_of = 0 if page.as_of is None else pages.format_micros(page.as_of)
        return pages.format_token(as_of, view.member.order.value, view.member.name)

    participants, token = pages.cut(explanation.members, page.limit, _participant, token_of)
    return round_pb2.GetRoundResponse(round=write(explanation, participants), next_page_token=token)


def write(explanation: Explanation, participants: Sequence[round_pb2.RoundParticipant] = ()) -> round_pb2.Round:
    """Encodes a round; without participants as a summary."""
    view = explanation.view
    found = view.round
    rule, missed = view.wait_rule, view.when_missed
    return round_pb2.Round(
        training_id=found.training_id,
        number=found.number,
        kind=convert.round_kind(found.kind.public_name),
        state=round_pb2.RoundState.Value(f"ROUND_STATE_{found.state.value}"),
        model_version=found.model_version,
        updates_arrived=found.arrived,
        updates_expected=found.expected,
        participants=participants,
        num_participants=found.members,
        waiting_for=_waiting_for(view, explanation.damage, explanation.num_connected),
        open_time=None if found.state is RoundState.PENDING else convert.timestamp(found.open_time),
        deadline=convert.timestamp(found.deadline),
        done_time=convert.timestamp(found.done_time),
        attempt=found.attempt,
        max_attempts=view.policy.max_attempts,
        wait_rule=round_pb2.WaitRule.Value(f"WAIT_RULE_{'UNSPECIFIED' if rule is None else rule.value}"),
        on_deadline=training_pb2.OnMissed.Value(f"ON_MISSED_{'UNSPECIFIED' if missed is None else missed.value}"),
        forecast_end_time=convert.timestamp(explanation.forecast_end),
        rejected_updates=map(_rejected, view.rejected_updates),
        num_failed=found.failed,
        num_connected=explanation.num_connected,
        draw=_draw(view),
        updates_enough=view.enough,
        wait_end_time=convert.timestamp(found.wait_end),
        not_connected=pages.fitting(islice(explanation.not_connected, MAX_MEMBERS), _not_connected),
        num_registered=len(view.participant_ids),
    )


def _not_connected(found: RegisteredParticipant) -> round_pb2.RoundParticipant:
    return round_pb2.RoundParticipant(
        user_id=found.user_id, name=found.name, last_seen_time=convert.timestamp(found.seen_time)
    )


def _draw(view: RoundView) -> round_pb2.CohortDraw | None:
    found = view.round
    if view.cohort is None or found.chosen is None:
        return None
    return round_pb2.CohortDraw(
        seed=view.cohort.seed,
        attempt=found.attempt,
        num_eligible=found.eligible or 0,
        num_needed=found.members if found.needed is None else found.needed,
        num_chosen=found.chosen,
    )


def _participant(view: MemberView) -> round_pb2.RoundParticipant:
    member = view.member
    missing = member.arrive_time is None
    return round_pb2.RoundParticipant(
        user_id=member.user_id,
        name=original_name(member.name, member.user_id),
        arrived=not missing,
        arrive_time=convert.timestamp(member.arrive_time),
        last_seen_time=convert.timestamp(view.last_seen),
        uploaded_bytes=view.uploaded_bytes,
        missing_since_time=convert.timestamp(member.ask_time) if missing else None,
        subscribed=view.subscribed,
        forecast_arrive_time=convert.timestamp(view.forecast),
        rejected_updates=map(_rejected, member.rejected_updates),
        failure=None if member.failure is None else convert.participant_failure(member.failure),
        attributes=view.attributes,
        rounds_left_out=member.rounds_left_out,
        report=None if member.report is None else _report(member.report),
    )


def _report(facts: UpdateFacts) -> round_pb2.UpdateReport:
    return round_pb2.UpdateReport(
        share=facts.share,
        norm=facts.norm,
        cosine=facts.cosine,
        distance_rank=facts.distance_rank,
        clip_scale=facts.scale,
        selected=facts.selected,
        staleness=facts.staleness,
    )


def _rejected(found: RejectedUpdate) -> round_pb2.RejectedUpdate:
    return round_pb2.RejectedUpdate(
        reason=found.reason,
        count=found.count,
        last_time=convert.timestamp(found.last_time),
        message=found.message,
    )


def _waiting_for(view: RoundView, damage: str | None, num_connected: int) -> str:
    found = view.round
    if found.state is RoundState.PENDING:
        if view.lack is not None:
            return _after(view, f"participants: {view.lack}")
        having = ", and one with the cohort's labels" if view.cohort is not None and view.cohort.labels else ""
        return _after(view, f"participants: {num_connected} of {view.wanted} connected{having}")
    if damage is not None:
        return f"the operator: {damage}"
    if found.state is RoundState.AGGREGATING:
        return "nothing: the round is closed, and its result is being computed" + _sequel(view)
    if found.state is RoundState.ABANDONED:
        return _after(view, "nothing: the round was abandoned; the training's error says why")
    if found.state is not RoundState.OPEN:
        return _after(view, f"nothing: the round is {found.state.value}")
    return _rule(view) + _sequel(view)


def _after(view: RoundView, text: str) -> str:
    """Returns what a round that is over waits for: its actor, if the training is paused or was stopped."""
    if view.stopped:
        return "nothing: the training was stopped by its actor"
    return "the actor: the training is paused, and the next round opens when it is resumed" if view.paused else text


def _sequel(view: RoundView) -> str:
    if view.stopped:
        return "; the training stops after this round"
    return "; the training is paused: no further round opens" if view.paused else ""


def _rule(view: RoundView) -> str:
    found = view.round
    rule = f"{found.expected - found.arrived} more of {found.expected} {found.kind.submission.noun}s"
    if view.enough < found.expected:
        rule += f" ({view.enough} are enough)"
    if found.failed:
        rule += f" ({found.failed} of {found.members} participants failed)"
    if view.lack is not None and found.arrived >= view.enough:
        rule = f"other updates: {view.lack}"
    if found.wait_end is not None:
        end = found.wait_end if found.deadline is None else min(found.wait_end, found.deadline)
        return f"{rule}, until {end.isoformat(timespec='seconds')}: then it closes with those that it has"
    if found.deadline is None:
        return f"{rule}; there is no deadline"
    rule += f", until {found.deadline.isoformat(timespec='seconds')}"
    if found.arrived >= view.enough and view.lack is None:
        return f"{rule}: then it closes with those that it has"
    if view.when_missed is OnMissed.RETRY:
        return f"{rule}: with fewer than that it is repeated (attempt {found.attempt} of {view.policy.max_attempts})"
    return f"{rule}: fewer than that end the training in ERROR"
