"""The log: without gaps, and to each reader what it may see; on both databases."""

import asyncio
from collections import Counter
from dataclasses import astuple
from datetime import timedelta

import pytest

from aggregations import fed_prox
from contracts.world import World, new_id
from fedround_server.domain.errors import CursorExpired, NotInCohort, RoundNotOpen, TrainingNotFound
from fedround_server.domain.event import (
    ClientRemoved,
    Event,
    RoundClosed,
    RoundStarted,
    TrainingFailed,
    TrainingFinished,
    TrainingRemoved,
    TrainingStarted,
    UpdateAccepted,
)
from fedround_server.domain.policy import RoundPolicy
from fedround_server.domain.user import Role
from fedround_server.store import Store
from fedround_server.store.queries.event_log import LogPage
from fedround_server.store.queries.log_view import LogView


async def read(store: Store, training_id: str, user: str, after: int | None = 0, limit: int = 1000) -> list[Event]:
    return list((await store.events.poll(training_id, user, after, limit)).events)


async def view(store: Store, training_id: str, user: str) -> LogView:
    (found,) = await store.events.views(user, [training_id])
    return found


def kinds(events: list[Event]) -> list[type]:
    return [type(event.payload) for event in events]


async def test_the_actor_reads_everything_and_a_participant_its_share(store: Store, world: World) -> None:
    policy = RoundPolicy(deadline=timedelta(seconds=30))
    actor, (first, second), training = await world.running(
        2, target_num_updates=1, round_policy=policy, aggregation=fed_prox(0.5)
    )
    for client in (first, second):
        await world.submit(training.training_id, 0, client, num_examples=5)
    await world.commit(training.training_id)
    log = await read(store, training.training_id, actor)
    assert [event.sequence for event in log] == [1, 2, 3, 4, 5, 6]
    assert kinds(log) == [
        TrainingStarted,
        RoundStarted,
        UpdateAccepted,
        UpdateAccepted,
        RoundClosed,
        TrainingFinished,
    ]
    model = await store.models.get_version(training.model_id, 0, actor)
    round_started = log[1].payload
    assert isinstance(round_started, RoundStarted)
    assert round_started.model.blob == model.blob
    assert round_started.deadline == log[1].create_time + timedelta(seconds=30)
    assert round_started.aggregation == fed_prox(0.5)
    accepted = [event.payload for event in log if isinstance(event.payload, UpdateAccepted)]
    assert [astuple(payload)[2:] for payload in accepted] == [(first, 5, 1, 2), (second, 5, 2, 2)]
    assert log[4].payload == RoundClosed(0, "TRAIN", 1, 2, {}, {"loss": 0.5})
    assert log[5].payload == TrainingFinished(training.model_id, 1)
    assert [event.sequence for event in await read(store, training.training_id, first)] == [1, 2, 5, 6]


async def test_reading_goes_on_behind_the_cursor(store: Store, world: World) -> None:
    actor, clients, training = await world.running(3, target_num_updates=3)
    for number in range(3):
        for client in clients:
            await world.submit(training.training_id, number, client)
        await world.commit(training.training_id)
    for user in (actor, clients[0]):
        whole = await read(store, training.training_id, user)
        expected = await view(store, training.training_id, user)
        cursor, events = 0, []
        while cursor < expected.last_sequence:
            page = await store.events.poll(training.training_id, user, cursor, 2)
            assert page.view == expected
            assert page.cursor > cursor
            events += page.events
            cursor = page.cursor
        assert events == whole
        assert await store.events.poll(training.training_id, user, cursor, 2) == LogPage(expected, (), cursor)


async def test_sequences_have_no_gaps_under_concurrency(store: Store, world: World) -> None:
    actor, clients, training = await world.running(10)
    others, removed_ids = await world.users(10), clients[:3]
    submitted, registered, removed = await asyncio.gather(
        asyncio.gather(*(world.submit(training.training_id, 0, one) for one in clients), return_exceptions=True),
        asyncio.gather(*(store.trainings.register(training.training_id, actor, [one], world.now) for one in others)),
        asyncio.gather(
            *(store.trainings.remove_clients(training.training_id, actor, [one], world.now) for one in removed_ids)
        ),
    )
    assert (len(registered), len(removed)) == (10, 3)
    # Only clients that are removed before their update comes are rejected, and one call closes the round.
    accepted = [answer for answer in submitted if isinstance(answer, tuple)]
    rejected = [
        one for one, answer in zip(clients, submitted, strict=True) if isinstance(answer, NotInCohort | RoundNotOpen)
    ]
    assert len(accepted) + len(rejected) == 10
    assert set(rejected) <= set(removed_ids)
    assert [closed for _, closed in [*accepted, *removed]].count(True) == 1

    log = await read(store, training.training_id, actor)
    assert [event.sequence for event in log] == list(range(1, len(log) + 1))
    assert (await store.trainings.get(training.training_id, actor)).last_sequence == len(log)
    assert Counter(kinds(log)) == {
        TrainingStarted: 1 + len(others),
        RoundStarted: 1,
        UpdateAccepted: len(accepted),
        ClientRemoved: len(removed_ids),
    }


async def test_a_late_participant_begins_with_its_own_start(store: Store, world: World) -> None:
    actor, (first,), training = await world.running(1, target_num_updates=3)
    late = await world.user()
    await store.trainings.register(training.training_id, actor, [late], world.now)
    await world.submit(training.training_id, 0, first)
    await world.commit(training.training_id)
    log = await read(store, training.training_id, late)
    assert kinds(log) == [TrainingStarted, RoundClosed, RoundStarted]
    # No other participant sees it; the actor sees everything.
    assert kinds(await read(store, training.training_id, first)) == [
        TrainingStarted,
        RoundStarted,
        RoundClosed,
        RoundStarted,
    ]
    assert kinds(await read(store, training.training_id, actor)).count(TrainingStarted) == 2


async def test_a_removed_participant_reads_up_to_its_removal(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2, target_num_updates=1)
    await store.trainings.remove_clients(training.training_id, actor, [first], world.now)
    await world.submit(training.training_id, 0, second)
    await world.commit(training.training_id)
    assert kinds(await read(store, training.training_id, first)) == [TrainingStarted, RoundStarted, ClientRemoved]
    assert ClientRemoved not in kinds(await read(store, training.training_id, second))
    found = await view(store, training.training_id, first)
    assert (found.until, found.ended) == (3, True)


async def test_who_comes_back_reads_from_its_return(store: Store, world: World) -> None:
    actor, (first, _), training = await world.running(2)
    await store.trainings.remove_clients(training.training_id, actor, [first], world.now)
    await store.trainings.register(training.training_id, actor, [first], world.now)
    log = await read(store, training.training_id, first)
    assert kinds(log) == [TrainingStarted]
    assert log[0].sequence == 4


async def test_the_end_is_in_the_log_and_seen_by_all(store: Store, world: World) -> None:
    actor, (client,), training = await world.running(1)
    await store.trainings.remove(training.training_id, actor, force=True, now=world.now)
    for user in (actor, client):
        assert kinds(await read(store, training.training_id, user))[-1] is TrainingRemoved
        assert (await view(store, training.training_id, user)).ended


async def test_who_is_missing_is_for_the_actor_only(store: Store, world: World) -> None:
    _, (first, _), training = await world.running(2, round_policy=RoundPolicy(deadline=timedelta(seconds=1)))
    await store.rounds.judge(training.training_id, 0, due=True, now=world.now)
    failed = (await read(store, training.training_id, first))[-1].payload
    assert failed == TrainingFailed("DEADLINE_MISSED", "the round reached its deadline with 0 of 2 updates")


async def test_only_requested_metrics_are_sent_to_participants(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2, metric_names=("loss",))
    await world.submit(training.training_id, 0, first, metrics={"loss": 1.0, "my own": 0.37})
    await world.submit(training.training_id, 0, second, metrics={"loss": 2.0})
    await world.commit(training.training_id)

    async def closed(user: str) -> RoundClosed:
        (payload,) = [one.payload for one in await read(store, training.training_id, user) if one.sequence == 5]
        assert isinstance(payload, RoundClosed)
        return payload

    assert await closed(actor) == RoundClosed(0, "TRAIN", 1, 2, {"loss": 1.5}, {"my own": 0.37})
    assert await closed(second) == RoundClosed(0, "TRAIN", 1, 2, {"loss": 1.5})


async def test_a_subscription_starts_where_the_training_stands(store: Store, world: World) -> None:
    actor, (first, second), training = await world.running(2, target_num_updates=2)
    await world.submit(training.training_id, 0, first)

    async def snapshot(user: str, resume_after: int | None = None) -> list[type]:
        return kinds(await read(store, training.training_id, user, resume_after))

    assert await snapshot(first) == [RoundStarted]
    assert await snapshot(actor) == [RoundStarted, UpdateAccepted]
    assert await snapshot(first, 0) == [TrainingStarted, RoundStarted]
    assert await snapshot(first, 2) == []
    await world.submit(training.training_id, 0, second)
    await world.commit(training.training_id)
    assert await snapshot(first) == [RoundStarted]
    for client in (first, second):
        await world.submit(training.training_id, 1, client)
    await world.commit(training.training_id)
    assert await snapshot(first) == [TrainingFinished]
    assert await snapshot(first, 2) == [RoundClosed, RoundStarted, RoundClosed, TrainingFinished]


async def test_a_cursor_behind_the_end_is_rejected(store: Store, world: World) -> None:
    actor, _, training = await world.running(1)
    with pytest.raises(CursorExpired, match="end of the log \\(2\\)"):
        await store.events.poll(training.training_id, actor, 3, 100)


async def test_who_never_had_a_part_gets_nothing(store: Store, world: World) -> None:
    _, _, training = await world.running(1)
    for training_id in (training.training_id, new_id()):
        unrelated = await world.user(Role.ACTOR)
        for call in (
            store.events.views(unrelated, [training_id]),
            store.events.poll(training_id, unrelated, None, 100),
            store.events.poll(training_id, unrelated, 0, 100),
        ):
            with pytest.raises(TrainingNotFound):
                await call


async def test_the_open_views_of_a_user(store: Store, world: World) -> None:
    actor, (client, _), training = await world.running(2, target_num_updates=1)
    other = await world.training(actor, [client])
    left = await world.training(actor, [client])
    await store.trainings.remove_clients(left.training_id, actor, [client], world.now)
    removed = await world.training(actor, [client])
    await store.trainings.remove(removed.training_id, actor, force=False, now=world.now)
    ended = await world.training(actor, [client], target_num_updates=1)
    await store.trainings.start(ended.training_id, actor, None, world.now)
    await world.submit(ended.training_id, 0, client)
    await world.commit(ended.training_id)
    everything = {one.training_id for one in (training, other, left, removed, ended)}
    for user, open_ in ((client, [training, other]), (actor, [training, other, left])):
        views = await store.events.open_views(user)
        assert {one.training_id for one in views} == {one.training_id for one in open_}
        assert not any(one.ended for one in views)
        named = await store.events.views(user, everything)
        assert {one.training_id for one in named} == everything
        for one in (*views, *named):
            assert (await store.events.poll(one.training_id, user, 0, 100)).view == one
    unrelated = await world.user()
    assert await store.events.open_views(unrelated) == await store.events.views(unrelated, []) == []
    with pytest.raises(TrainingNotFound):
        await store.events.views(client, [training.training_id, new_id()])


async def test_views_take_as_many_queries_whatever_their_number(
    store: Store, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    actor, client = await world.user(Role.ACTOR), await world.user()
    queries: list[list[int]] = []
    ids: list[str] = []
    for _ in range(2):
        ids += [(await world.training(actor, [client])).training_id for _ in range(10)]
        queries.append([])
        for user in (actor, client):
            for views in (store.events.open_views(user), store.events.views(user, ids)):
                caplog.clear()
                with caplog.at_level("DEBUG", "peewee"):
                    assert len(await views) == len(ids)
                queries[-1].append(len(caplog.records))
    assert queries[0] == queries[1]
    assert 0 not in queries[0]
