"""Answers stay within the size of a message, however many take part."""

from dataclasses import replace
from datetime import UTC, datetime

from contracts.world import SPEC, new_id
from fedround.v1 import round_pb2
from fedround_server.coordinator.round_status import Explanation, MemberView
from fedround_server.domain.config import check_size
from fedround_server.domain.rejected_update import MAX_MESSAGE, RejectedUpdate
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.round import MemberOrder, Round, RoundMember, RoundState, RoundView
from fedround_server.domain.training import Training, TrainingState
from fedround_server.grpc_server import MAX_MESSAGE as MAX_MESSAGE_SIZE
from fedround_server.services import convert, round_view

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROUND = Round(new_id(), 0, KINDS["TRAIN"], RoundState.OPEN, 0, 0, 1000, 2000, NOW, None, None, members=1600)
TRAINING = Training(new_id(), SPEC, new_id(), (), TrainingState.INITIAL, 0, 0, 0, new_id(), 0, None, 0, NOW, None, NOW)
LONGEST = "\U0001f3e5" * 200


def test_a_page_of_participants_ends_at_its_limit() -> None:
    views = tuple(MemberView(RoundMember(new_id(), LONGEST, NOW, NOW), NOW, True, 2**40, NOW, {}) for _ in range(1001))
    answer = round_view.write_page(Explanation(RoundView(ROUND, SPEC.round_policy), views))
    assert answer.round.num_participants == 1600
    assert [one.user_id for one in answer.round.participants] == [view.member.user_id for view in views[:1000]]
    asked = round_pb2.GetRoundRequest(round=0, page_token=answer.next_page_token)
    assert round_view.read_page(asked).after == (MemberOrder.MISSING, LONGEST)
    assert answer.ByteSize() < MAX_MESSAGE_SIZE


def test_rejected_updates_leave_room_for_the_rest_of_a_round() -> None:
    rejected = tuple(RejectedUpdate(f"REASON_{number}", 2**40, NOW, "\U0001f3e5" * MAX_MESSAGE) for number in range(20))
    members = [RoundMember(new_id(), LONGEST, NOW, None, rejected_updates=rejected) for _ in range(1000)]
    views = tuple(MemberView(member, NOW, True, 2**40, NOW, {}) for member in members)
    view = RoundView(ROUND, SPEC.round_policy, rejected_updates=rejected)
    answer = round_view.write_page(Explanation(view, views))
    shown = answer.round
    assert 0 < len(shown.participants) < 1000
    assert answer.next_page_token
    assert len(shown.rejected_updates) == len(shown.participants[0].rejected_updates) == 20
    assert answer.ByteSize() < MAX_MESSAGE_SIZE


def test_a_training_of_very_many_participants() -> None:
    ids = tuple(sorted(new_id() for _ in range(60_000)))
    # As large as a configuration may be.
    own = {user_id: {"n" * 8: 0.1, "m" * 8: 1} for user_id in ids[:9_000]}
    check_size("spec.config", {}, own)
    spec = replace(
        SPEC,
        description=LONGEST * 50,
        client_ids=ids[:10_000],
        metric_names=("n" * 100,) * 100,
        client_config=own,
    )
    found = replace(TRAINING, spec=spec, participant_ids=ids, num_participants=len(ids))
    shown = convert.training(found, found.actor_id)
    assert (tuple(shown.participant_ids), shown.num_participants) == (ids[:10_000], 60_000)
    assert shown.ByteSize() < MAX_MESSAGE_SIZE
    assert list(convert.training(found, ids[-1]).participant_ids) == [ids[-1]]
