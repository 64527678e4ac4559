"""Writes a Round message: what a round waits for, as its actor sees it."""

from collections.abc import Sequence

from fedround.v1 import round_pb2
from fedround_server.coordinator.round import MemberView
from fedround_server.domain.round import RoundKind, RoundState, RoundView
from fedround_server.services import convert

MAX_MEMBERS = 1000


def write(view: RoundView, members: Sequence[MemberView]) -> round_pb2.Round:
    """Encodes a round with what is known of its members: the missing ones first, as far as there is room."""
    found = view.round
    missing_first = sorted(members, key=lambda one: one.member.arrive_time is not None)
    return round_pb2.Round(
        training_id=found.training_id,
        number=found.number,
        kind=convert.round_kind(found.kind.value),
        state=round_pb2.RoundState.Value(f"ROUND_STATE_{found.state.value}"),
        model_version=found.model_version,
        updates_arrived=found.arrived,
        updates_expected=found.expected,
        participants=[
            round_pb2.RoundParticipant(
                user_id=one.member.user_id,
                name=one.member.name,
                arrived=one.member.arrive_time is not None,
                arrive_time=convert.timestamp(one.member.arrive_time),
                last_seen_time=convert.timestamp(one.last_seen),
                uploaded_bytes=one.uploaded_bytes,
            )
            for one in missing_first[:MAX_MEMBERS]
        ],
        num_participants=len(members),
        waiting_for=_waiting_for(view),
        open_time=convert.timestamp(found.open_time),
        deadline=convert.timestamp(found.deadline),
        done_time=convert.timestamp(found.done_time),
        attempt=found.attempt,
        max_attempts=view.policy.max_attempts,
    )


def _waiting_for(view: RoundView) -> str:
    found = view.round
    if found.state is RoundState.AGGREGATING:
        return "nothing: the round is closed, and its result is being computed"
    if found.state is not RoundState.OPEN:
        return f"nothing: the round is {found.state.value}"
    noun = "reports" if found.kind is RoundKind.EVALUATE else "updates"
    rule = f"{found.expected - found.arrived} more of {found.expected} {noun}"
    if found.deadline is None:
        return f"{rule}; there is no deadline"
    rule += f", until {found.deadline.isoformat(timespec='seconds')}"
    if found.attempt < view.policy.max_attempts:
        return f"{rule}: with fewer than that it is repeated (try {found.attempt} of {view.policy.max_attempts})"
    return f"{rule}: fewer than that end the training in ERROR"
