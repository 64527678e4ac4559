"""Answers stay within the size of a message, however many take part."""

import random
from dataclasses import replace
from datetime import UTC, datetime

from contracts.world import SPEC, new_id
from fedround_server.coordinator.round_status import Explanation, MemberView
from fedround_server.domain.config import check_size
from fedround_server.domain.rejected_update import MAX_MESSAGE, RejectedUpdate
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.round import Round, RoundMember, RoundState, RoundView
from fedround_server.domain.training import Training, TrainingState
from fedround_server.grpc_server import MAX_MESSAGE as MAX_MESSAGE_SIZE
from fedround_server.services import convert, round_view

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROUND = Round(new_id(), 0, KINDS["TRAIN"], RoundState.OPEN, 0, 0, 1000, 2000, NOW, None, None)
TRAINING = Training(new_id(), SPEC, new_id(), (), TrainingState.INITIAL, 0, 0, 0, new_id(), 0, None, 0, NOW, None, NOW)
LONGEST = "\U0001f3e5" * 200


def test_a_round_shows_the_missing_first() -> None:
    arrived = [RoundMember(new_id(), LONGEST, NOW, NOW) for _ in range(1000)]
    missing = [RoundMember(new_id(), LONGEST, NOW, None) for _ in range(600)]
    views = [MemberView(member, NOW, True, 2**40, NOW, {}) for member in [*arrived, *missing]]
    random.Random(0).shuffle(views)
    shown = round_view.write(Explanation(RoundView(ROUND, SPEC.round_policy, ()), tuple(views), NOW))
    assert shown.num_participants == 1600
    assert {one.user_id for one in shown.participants[:600]} == {member.user_id for member in missing}
    assert all(one.arrived for one in shown.participants[600:])
    assert len(shown.participants) == 1000
    assert shown.ByteSize() < MAX_MESSAGE_SIZE


def test_rejected_updates_leave_room_for_the_rest_of_a_round() -> None:
    rejected = tuple(RejectedUpdate(f"REASON_{number}", 2**40, NOW, "\U0001f3e5" * MAX_MESSAGE) for number in range(20))
    members = [RoundMember(new_id(), LONGEST, NOW, None, rejected_updates=rejected) for _ in range(1000)]
    views = tuple(MemberView(member, NOW, True, 2**40, NOW, {}) for member in members)
    shown = round_view.write(Explanation(RoundView(ROUND, SPEC.round_policy, (), rejected), views, NOW))
    assert shown.num_participants == 1000
    assert 0 < len(shown.participants) < 1000
    assert len(shown.rejected_updates) == len(shown.participants[0].rejected_updates) == 20
    assert shown.ByteSize() < MAX_MESSAGE_SIZE


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
