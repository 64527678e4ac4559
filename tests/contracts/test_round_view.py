"""What the actor sees of a round: who is missing, what each took before, what was rejected; on both databases."""

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from contracts.coordination import coordinating, lose
from contracts.world import World, new_id
from fedround_server.coordinator import Context, housekeeping
from fedround_server.coordinator.housekeeping import LAST_SEEN_INTERVAL
from fedround_server.domain.errors import (
    FieldInvalid,
    RoundNotOpen,
    StoreUnavailable,
    TrainingNotFound,
    UpdateMismatch,
    UploadOffset,
)
from fedround_server.domain.policy import OnMissed, RoundPolicy
from fedround_server.domain.rejected_update import MAX_MESSAGE
from fedround_server.domain.rounds.round import RoundMember, WaitRule
from fedround_server.domain.token import new_token
from fedround_server.store import Store
from fedround_server.store.verbs.submission import SubmissionVerbs

NOTHING: Any = None
HOUR = timedelta(hours=1)


async def members(store: Store, training_id: str, actor: str, number: int | None = None) -> dict[str, RoundMember]:
    view = await store.rounds.explain(training_id, number, actor)
    return {member.user_id: member for member in view.members}


async def test_each_is_missing_since_it_was_asked(store: Store, world: World) -> None:
    policy = RoundPolicy(deadline=HOUR, on_missed=OnMissed.RETRY, max_retries=1)
    actor, (first,), training = await world.running(1, round_policy=policy)
    late = await world.user()
    await store.trainings.register(training.training_id, actor, [late], world.now)
    repeated = world.now
    await store.rounds.judge(training.training_id, 0, due=True, now=repeated)
    found = await members(store, training.training_id, actor)
    current = await store.rounds.current(training.training_id)
    assert current is not None
    assert found[first].ask_time == current.open_time
    assert found[late].ask_time == repeated


async def test_a_history_is_of_the_same_kind_and_of_the_latest_rounds(
    store: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, clients, training = await world.running(2, target_num_updates=9, metric_names=("loss",))
    training_id = training.training_id
    taken: dict[str, list[timedelta]] = {client: [] for client in clients}
    for number in range(0, 6, 2):
        asked = (await store.rounds.current(training_id)).open_time  # type: ignore[union-attr]
        for client in clients:
            update, _ = await world.submit(training_id, number, client)
            taken[client].append(update.accept_time - asked)
        await world.commit(training_id)
        for client in clients:
            # Ticks of the clock, that no report comes as fast as an update.
            assert [world.now for _ in range(50)]
            await world.report(training_id, number + 1, client, 1, loss=0.5)
        await world.commit(training_id)
    found = await members(store, training_id, actor)
    assert {user: sorted(member.durations) for user, member in found.items()} == {
        user: sorted(durations) for user, durations in taken.items()
    }
    monkeypatch.setattr("fedround_server.store.queries.round_members.HISTORY", 1)
    found = await members(store, training_id, actor)
    assert {user: list(member.durations) for user, member in found.items()} == {
        user: durations[-1:] for user, durations in taken.items()
    }
    # Of what is here, and of a round that is over, nothing is forecast.
    await world.submit(training_id, 6, clients[0])
    found = await members(store, training_id, actor)
    assert [len(found[client].durations) for client in clients] == [0, 1]
    assert not any(member.durations for member in (await members(store, training_id, actor, 4)).values())


async def test_the_rule_and_what_happens_at_the_deadline(store: Store, world: World) -> None:
    actor, clients, training = await world.running(3)
    view = await store.rounds.explain(training.training_id, None, actor)
    assert (view.wait_rule, view.when_missed) == (WaitRule.ALL_UPDATES, None)
    policy = RoundPolicy(2, HOUR, on_missed=OnMissed.RETRY, max_retries=1)
    actor, clients, training = await world.running(3, round_policy=policy, target_num_updates=1)
    training_id = training.training_id
    view = await store.rounds.explain(training_id, None, actor)
    assert (view.wait_rule, view.when_missed) == (WaitRule.MIN_UPDATES, OnMissed.RETRY)
    await store.rounds.judge(training_id, 0, due=True, now=world.now)
    view = await store.rounds.explain(training_id, None, actor)
    assert (view.wait_rule, view.when_missed) == (WaitRule.MIN_UPDATES, OnMissed.FAIL)
    # Two are all that are left.
    await store.trainings.remove_clients(training_id, actor, clients[:1], world.now)
    view = await store.rounds.explain(training_id, None, actor)
    assert view.wait_rule is WaitRule.ALL_UPDATES
    for client in clients[1:]:
        await world.submit(training_id, 0, client)
    view = await store.rounds.explain(training_id, None, actor)
    assert (view.wait_rule, view.when_missed) == (WaitRule.AGGREGATION, None)
    await world.commit(training_id)
    view = await store.rounds.explain(training_id, None, actor)
    assert (view.wait_rule, view.when_missed) == (None, None)


async def test_rejected_updates_are_counted_by_user_and_reason(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2)
    training_id, note = training.training_id, store.submissions.record_rejected
    await asyncio.gather(*(note(training_id, 0, first, "A", "early", world.now) for _ in range(10)))
    last = world.now
    await note(training_id, 0, first, "A", "x" * 1000, last)
    await note(training_id, 0, first, "B", "b", world.now)
    await note(training_id, 0, second, "A", "late", world.now)
    # A round that there is not: it is the current one's.
    await note(training_id, 2**32 - 1, second, "A", "later", world.now)
    view = await store.rounds.explain(training_id, None, actor)
    found = {member.user_id: {one.reason: one for one in member.rejected_updates} for member in view.members}
    assert {user: {reason: one.count for reason, one in own.items()} for user, own in found.items()} == {
        first: {"A": 11, "B": 1},
        second: {"A": 2},
    }
    assert (found[first]["A"].last_time, found[first]["A"].message) == (last, "x" * MAX_MESSAGE)
    assert [(one.reason, one.count, one.message) for one in view.rejected_updates] == [
        ("A", 13, "later"),
        ("B", 1, "b"),
    ]
    assert view.round.arrived == 0


async def test_a_removed_member_is_counted_in_the_round_and_an_unrelated_user_nowhere(
    store: Store, world: World
) -> None:
    actor, (first, second), training = await world.running(2)
    training_id, unrelated = training.training_id, await world.user()
    await store.trainings.remove_clients(training_id, actor, [first], world.now)
    await store.submissions.record_rejected(training_id, 0, first, "A", "", world.now)
    await store.submissions.record_rejected(training_id, 0, unrelated, "A", "", world.now)
    await store.submissions.record_rejected(new_id(), 0, second, "A", "", world.now)
    waiting = await world.training(actor, [second])
    await store.submissions.record_rejected(waiting.training_id, 0, second, "A", "", world.now)
    view = await store.rounds.explain(training_id, None, actor)
    assert [(one.reason, one.count) for one in view.rejected_updates] == [("A", 1)]
    assert not any(member.rejected_updates for member in view.members)


async def test_an_update_is_rejected_even_if_it_cannot_be_counted(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, (client,), training = await coordination.running(1)
        rejected_updates = coordination.coordinator.rejected_updates
        lose(monkeypatch, SubmissionVerbs, "record_rejected", committed=False)
        for count in (0, 1):
            with pytest.raises(UpdateMismatch):
                async with rejected_updates.counted(training.training_id, 0, client):
                    raise UpdateMismatch("tensor '\0\ud800' is not one of the model's")
            view = await store.rounds.explain(training.training_id, None, actor)
            assert sum(one.count for one in view.rejected_updates) == count
        # What says nothing of an update is not counted.
        with pytest.raises(TrainingNotFound):
            async with rejected_updates.counted(training.training_id, 0, client):
                raise TrainingNotFound(training.training_id)
        with pytest.raises(RoundNotOpen):
            async with rejected_updates.counted(training.training_id, 7, client):
                raise RoundNotOpen("round 7 is not open")
        # Where an upload goes on is no error of what is sent.
        with pytest.raises(UploadOffset):
            async with rejected_updates.counted(training.training_id, 0, client):
                raise UploadOffset(77, 0)
        view = await store.rounds.explain(training.training_id, None, actor)
        assert {one.reason for one in view.rejected_updates} == {"UPDATE_MISMATCH", "ROUND_NOT_OPEN"}


async def test_no_token_is_kept_with_a_rejected_update(store: Store, tmp_path: Path) -> None:
    token = new_token()
    async with coordinating(store, tmp_path) as coordination:
        actor, (client,), training = await coordination.running(1)
        with pytest.raises(FieldInvalid):
            async with coordination.coordinator.rejected_updates.counted(training.training_id, 0, client):
                raise FieldInvalid("upload_id", f"{token!r} is not a UUID" + "!" * MAX_MESSAGE)
        view = await store.rounds.explain(training.training_id, None, actor)
    assert view.rejected_updates[0].message.startswith("upload_id: 'fr_...' is not a UUID")


async def test_who_was_forgotten_is_not_seen_any_more(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        presence, user = coordination.context.presence, await coordination.world.user()
        presence.see(user, coordination.clock.now())
        with presence.listening(user, coordination.clock.now):
            presence.forget(user)
        assert presence.take_news(coordination.clock.now()) == {}
        assert presence.last_seen(user, coordination.clock.now()) is None


async def test_who_was_seen_is_known_after_a_restart(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path / "one") as coordination:
        actor, (first, second, third), training = await coordination.running(3)
        await coordination.coordinator.recover()
        presence, start = coordination.context.presence, coordination.clock.now()
        presence.see(first, start)
        with presence.listening(second, coordination.clock.now):
            await coordination.clock.asleep(LAST_SEEN_INTERVAL)
            coordination.clock.advance(LAST_SEEN_INTERVAL)
            await coordination.clock.asleep(start + 2 * LAST_SEEN_INTERVAL)
            found = await members(store, training.training_id, actor)
            assert (found[first].seen_time, found[third].seen_time) == (start, None)
            assert found[second].seen_time == start + LAST_SEEN_INTERVAL
            coordination.clock.advance(timedelta(seconds=7))
        # What happened since the last time that it was kept is kept at the end.
        await coordination.coordinator.close()
    async with coordinating(store, tmp_path / "two") as coordination:
        explanation = await coordination.coordinator.round_status.explain(training.training_id, None, actor)
        seen = {one.member.user_id: one.last_seen for one in explanation.members}
        assert seen == {first: start, second: start + LAST_SEEN_INTERVAL + timedelta(seconds=7), third: None}


async def test_last_seen_times_of_very_many_are_kept(store: Store, world: World) -> None:
    actor, clients, training = await world.running(2)
    await store.users.record_last_seen({})
    await store.users.record_last_seen({new_id(): world.now for _ in range(1200)} | {clients[0]: world.now})
    last = world.now
    await store.users.record_last_seen({clients[0]: last})
    found = await members(store, training.training_id, actor)
    assert (found[clients[0]].seen_time, found[clients[1]].seen_time) == (last, None)


async def test_last_seen_times_are_written_some_at_a_time(
    store: Store, world: World, verbs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "LAST_SEEN_USERS", 2)
    context = Context(store, NOTHING, NOTHING, NOTHING, NOTHING)
    users = [new_id() for _ in range(5)]
    keep = housekeeping.Housekeeping(context, NOTHING, NOTHING).keep_last_seen

    def see_all() -> None:
        for user in users:
            context.presence.see(user, world.now)

    see_all()
    await keep()
    assert verbs == ["user.record_last_seen"] * 3
    see_all()
    record, written = type(store.users).record_last_seen, []

    async def fail_later(self: Any, seen: dict[str, datetime]) -> None:
        if written:
            raise StoreUnavailable("gone")
        written.extend(seen)
        await record(self, seen)

    monkeypatch.setattr(type(store.users), "record_last_seen", fail_later)
    await keep()
    # What was not written is for the next time.
    assert len(written) == 2
    assert context.presence.take_news(world.now).keys() == set(users) - set(written)


async def test_the_end_of_a_round_is_forecast_from_earlier_ones(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        policy = RoundPolicy(2, HOUR)
        actor, clients, training = await coordination.running(3, round_policy=policy, target_num_updates=5)
        training_id, status = training.training_id, coordination.coordinator.round_status
        found = await status.explain(training_id, None, actor)
        assert (found.forecast_end, {one.forecast for one in found.members}) == (None, {None})
        # The first takes a minute, the second two; the third is not waited for.
        for client in clients[:2]:
            coordination.clock.advance(timedelta(minutes=1))
            await coordination.submit(training_id, 0, client)
        await coordination.until(actor, training_id, lambda training: training.round == 1)
        opened = coordination.clock.now()
        found = await status.explain(training_id, None, actor)
        forecasts = {one.member.user_id: one.forecast for one in found.members}
        assert forecasts == {
            clients[0]: opened + timedelta(minutes=1),
            clients[1]: opened + timedelta(minutes=2),
            clients[2]: None,
        }
        assert found.forecast_end == opened + timedelta(minutes=2)
        # The third comes in the place of the first.
        coordination.clock.advance(timedelta(seconds=30))
        await coordination.submit(training_id, 1, clients[2])
        found = await status.explain(training_id, None, actor)
        assert found.forecast_end == opened + timedelta(minutes=1)
        # Overdue is at any moment, and never behind the deadline.
        coordination.clock.advance(timedelta(minutes=9))
        found = await status.explain(training_id, None, actor)
        assert found.forecast_end == coordination.clock.now()
        await coordination.submit(training_id, 1, clients[1])
        await coordination.until(actor, training_id, lambda training: training.round == 2)
        closed = await status.explain(training_id, 1, actor)
        assert (closed.forecast_end, {one.forecast for one in closed.members}) == (None, {None})
