"""Asynchronous trainings: in which round an update counts, and that it counts once; on both databases."""

from datetime import timedelta
from typing import Any

import pytest

from contracts.audits import check, recorded
from contracts.test_failures import current, ending, log
from contracts.world import World
from fedround_server.aggregators.buffering import FedAsync, FedBuff
from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.cohort import Cohort
from fedround_server.domain.errors import (
    FieldInvalid,
    NotInCohort,
    ReplayImpossible,
    RoundNotOpen,
    UpdateExists,
    UpdateStale,
    UpdateSuperseded,
)
from fedround_server.domain.event import RoundStarted, WorkNotNeeded
from fedround_server.domain.policy import OnMissed, RoundPolicy
from fedround_server.domain.training import Evaluation, Stop
from fedround_server.domain.user import Role
from fedround_server.store import Store
from fedround_server.store.queries.buffered import NextRoundAwaited


def buffered(size: int = 2, max_staleness: int = 3) -> Aggregation:
    return Aggregation(FedAvg(), buffering=FedBuff(size, max_staleness))


async def started(world: World, clients: int = 3, **spec: Any) -> tuple[str, list[str], str]:
    spec = {"aggregation": buffered(), "target_num_updates": 20, **spec}
    actor, users, training = await world.running(clients, **spec)
    return actor, users, training.training_id


async def make_version(world: World, training_id: str, users: list[str]) -> None:
    """Has users submit updates from the open round's version, which close it, and commits the result."""
    number = (await current(world.store, training_id)).number
    for user in users:
        await world.submit(training_id, number, user)
    assert await world.commit(training_id)


async def counted(store: Store, training_id: str) -> list[tuple[int, int | None]]:
    """Returns the rounds and base versions of the closed round's updates."""
    task = await store.rounds.find_aggregation(training_id)
    assert task is not None
    return sorted((update.round, update.base_version) for update in task.updates)


class TestAcceptance:
    async def test_a_slow_update_counts_in_the_open_round(self, store: Store, world: World) -> None:
        _, (slow, *fast), training_id = await started(world)
        for _ in range(3):
            await make_version(world, training_id, fast)
        update, closed = await world.submit(training_id, 0, slow)
        assert (update.round, update.base_version, closed) == (3, 0, False)
        _, closed = await world.submit(training_id, 3, fast[0])
        assert closed
        task = await store.rounds.find_aggregation(training_id)
        assert task is not None
        assert sorted((one.round, one.base_version) for one in task.updates) == [(3, 0), (3, 3)]
        assert list(task.bases) == [0]
        await check(store)

    async def test_a_round_closes_with_size_updates_whoever_is_missing(self, store: Store, world: World) -> None:
        _, users, training_id = await started(world, 5)
        assert (await current(store, training_id)).expected == 2
        assert not (await world.submit(training_id, 0, users[0]))[1]
        assert (await world.submit(training_id, 0, users[1]))[1]

    async def test_a_round_of_few_participants_closes_with_all_of_them(self, store: Store, world: World) -> None:
        _, users, training_id = await started(world, 2, aggregation=buffered(10))
        assert (await current(store, training_id)).expected == 2
        await make_version(world, training_id, users)

    async def test_each_update_makes_a_version_of_fed_async(self, store: Store, world: World) -> None:
        _, users, training_id = await started(world, aggregation=Aggregation(FedAvg(), buffering=FedAsync()))
        for number, user in enumerate(users):
            update, closed = await world.submit(training_id, 0, user)
            assert (update.round, update.base_version, closed) == (number, 0, True)
            await world.commit(training_id)
        assert (await current(store, training_id)).model_version == 3

    async def test_the_base_version_may_be_named(self, store: Store, world: World) -> None:
        _, (slow, *fast), training_id = await started(world)
        await make_version(world, training_id, fast)
        with pytest.raises(FieldInvalid, match=r"spec\.base_version.*is 2, and the latest version is 1"):
            await world.submit(training_id, 1, slow, base_version=2)
        update, _ = await world.submit(training_id, 1, slow, base_version=0)
        assert (update.round, update.base_version) == (1, 0)

    async def test_without_buffering_it_is_that_of_the_round(self, world: World) -> None:
        _, users, training = await world.running(2)
        with pytest.raises(FieldInvalid, match=r"spec\.base_version.*is 1, and the round started from version 0"):
            await world.submit(training.training_id, 0, users[0], base_version=1)
        update, _ = await world.submit(training.training_id, 0, users[0], base_version=0)
        assert update.base_version is None

    async def test_a_stale_update_is_told_by_how_much(self, store: Store, world: World) -> None:
        _, (slow, *fast), training_id = await started(world)
        for _ in range(4):
            await make_version(world, training_id, fast)
        with pytest.raises(UpdateStale, match=r"version 0, 4 versions before version 4, .* at most 3: discard it"):
            await world.submit(training_id, 0, slow)
        assert (await current(store, training_id)).arrived == 0
        await world.submit(training_id, 1, slow)

    async def test_staleness_counts_from_the_next_version_while_one_is_made(self, world: World) -> None:
        _, (slow, *fast), training_id = await started(world)
        for _ in range(3):
            await make_version(world, training_id, fast)
        for user in fast:
            await world.submit(training_id, 3, user)
        with pytest.raises(UpdateStale, match="4 versions before version 4"):
            await world.submit(training_id, 0, slow)
        with pytest.raises(NextRoundAwaited):
            await world.submit(training_id, 1, slow)

    async def test_a_round_that_is_not_open_yet_takes_none(self, world: World) -> None:
        _, users, training_id = await started(world)
        with pytest.raises(RoundNotOpen):
            await world.submit(training_id, 1, users[0])


class TestOnce:
    async def test_the_same_gets_its_receipt_in_any_later_round(self, store: Store, world: World) -> None:
        _, (slow, *fast), training_id = await started(world, 4)
        await make_version(world, training_id, fast[:2])
        first, _ = await world.submit(training_id, 0, slow)
        for base in (None, 0):
            assert (await world.submit(training_id, 0, slow, base_version=base))[0] == first
        await world.submit(training_id, 1, fast[0])
        assert (await world.submit(training_id, 0, slow))[0] == first
        await world.commit(training_id)
        for _ in range(6):
            await make_version(world, training_id, fast[:2])
        # It would be stale by now.
        again, closed = await world.submit(training_id, 0, slow)
        assert (again, closed) == (first, False)
        assert (await current(store, training_id)).arrived == 0

    async def test_another_one_from_the_same_version_is_refused(self, store: Store, world: World) -> None:
        _, (slow, *fast), training_id = await started(world, 4)
        first, _ = await world.submit(training_id, 0, slow)
        await make_version(world, training_id, fast[:1])
        for changed in ({"content": "other"}, {"num_examples": 3}):
            with pytest.raises(UpdateExists, match=r"from version 0, which counts in round 0 \(different: "):
                await world.submit(training_id, 1, slow, base_version=0, **changed)
        update, _ = await world.submit(training_id, 1, slow)
        assert (update.round, update.base_version) == (1, 1)
        assert update.update_id != first.update_id

    async def test_a_participant_has_one_update_in_a_round(self, world: World) -> None:
        _, (slow, *fast), training_id = await started(world, 4)
        await make_version(world, training_id, fast[:2])
        await world.submit(training_id, 1, slow)
        with pytest.raises(UpdateExists, match="different: sha256, base_version"):
            await world.submit(training_id, 0, slow)

    async def test_it_waits_for_the_next_round_after_the_one_that_it_has_an_update_in(self, world: World) -> None:
        _, (slow, *fast), training_id = await started(world, 4)
        await make_version(world, training_id, fast[:2])
        await world.submit(training_id, 1, slow)
        await world.submit(training_id, 1, fast[0])
        with pytest.raises(NextRoundAwaited):
            await world.submit(training_id, 0, slow)
        await world.commit(training_id)
        assert (await world.submit(training_id, 0, slow))[0].round == 2


class TestEnds:
    async def test_updates_of_removed_participants_are_superseded(self, store: Store, world: World) -> None:
        actor, users, training_id = await started(world, 4, aggregation=buffered(3))
        first, _ = await world.submit(training_id, 0, users[0])
        await store.trainings.remove_clients(training_id, actor, users[:1], world.now)
        with pytest.raises(UpdateSuperseded):
            await world.submit(training_id, 0, users[0])
        with pytest.raises(NotInCohort):
            await world.submit(training_id, 0, users[0], "other")
        await store.trainings.register(training_id, actor, users[:1], world.now)
        await make_version(world, training_id, users[1:])
        # Registered anew, it may send it again, for the next version.
        second, _ = await world.submit(training_id, 0, users[0])
        assert (second.round, second.base_version) == (1, 0)
        assert second.update_id != first.update_id
        await check(store)

    async def test_a_pause_refuses_what_has_no_round(self, store: Store, world: World) -> None:
        actor, (slow, *fast), training_id = await started(world)
        await store.control.pause(training_id, actor, None, world.now)
        await world.submit(training_id, 0, fast[0])
        await world.submit(training_id, 0, fast[1])
        paused = "paused; keep the update, and send it again"
        with pytest.raises(RoundNotOpen, match=paused):
            await world.submit(training_id, 0, slow)
        await world.commit(training_id)
        with pytest.raises(RoundNotOpen, match=paused):
            await world.submit(training_id, 0, slow)
        await store.control.resume(training_id, actor, None, world.now)
        assert (await world.submit(training_id, 0, slow))[0].round == 1

    async def test_a_stop_refuses_what_has_no_round(self, store: Store, world: World) -> None:
        actor, (slow, *fast), training_id = await started(world)
        await store.control.stop(training_id, actor, Stop.AFTER_ROUND, None, world.now)
        for user in fast:
            await world.submit(training_id, 0, user)
        with pytest.raises(RoundNotOpen, match="no round takes updates any more"):
            await world.submit(training_id, 0, slow)
        await world.commit(training_id)
        with pytest.raises(RoundNotOpen, match="no round takes updates any more"):
            await world.submit(training_id, 0, slow)

    async def test_a_deadline_repeats_or_fails_as_the_policy_says(self, store: Store, world: World) -> None:
        policy = RoundPolicy(deadline=timedelta(hours=1), on_missed=OnMissed.RETRY, max_retries=1)
        actor, users, training_id = await started(world, round_policy=policy)
        await world.submit(training_id, 0, users[0])
        assert not await store.rounds.judge(training_id, 0, due=True, now=world.now)
        assert (await current(store, training_id)).attempt == 2
        await store.rounds.judge(training_id, 0, due=True, now=world.now)
        assert (await ending(store, training_id, actor)).reason == "DEADLINE_MISSED"

    async def test_a_failure_counts_in_the_open_round(self, store: Store, world: World) -> None:
        actor, (slow, *fast), training_id = await started(world)
        await make_version(world, training_id, fast)
        await store.submissions.report_failure(training_id, 0, slow, "TRAIN_FAILED", "no disk", world.now)
        view = await store.rounds.explain(training_id, None, actor)
        assert [(one.user_id, one.failure is not None) for one in view.members if one.failure] == [(slow, True)]
        for user in fast:
            await world.submit(training_id, 1, user)
        with pytest.raises(NextRoundAwaited):
            await store.submissions.report_failure(training_id, 1, fast[0], "TRAIN_FAILED", "no disk", world.now)

    async def test_the_last_evaluation_takes_no_updates(self, store: Store, world: World) -> None:
        _, (slow, *fast), training_id = await started(
            world, target_num_updates=1, metric_names=("loss",), evaluation=Evaluation.FINAL_ONLY
        )
        await make_version(world, training_id, fast)
        await world.report(training_id, 1, slow, 10, loss=0.5)
        with pytest.raises(RoundNotOpen, match="no round takes updates any more"):
            await world.submit(training_id, 0, slow)

    async def test_a_failure_that_is_reported_again_counts_once(self, store: Store, world: World) -> None:
        actor, (slow, *fast), training_id = await started(world)
        await make_version(world, training_id, fast)
        await store.submissions.report_failure(training_id, 0, slow, "TRAIN_FAILED", "no disk", world.now)
        for _ in range(2):
            # The answer was lost, and the next round has begun meanwhile.
            await store.submissions.report_failure(training_id, 0, slow, "TRAIN_FAILED", "no disk", world.now)
            await make_version(world, training_id, fast)
        failures = await recorded(store, "participant_failed")
        assert [one["round"] for one in failures] == [1]
        view = await store.rounds.explain(training_id, None, actor)
        assert not any(one.failure for one in view.members)

    async def test_participants_under_way_are_not_released(self, store: Store, world: World) -> None:
        actor = await world.user(Role.ACTOR)
        users = sorted([await world.user(site="a") for _ in range(3)])
        training = await world.training(
            actor, users, aggregation=buffered(), cohort=Cohort(labels={"site": "a"}), target_num_updates=5
        )
        training_id = training.training_id
        await store.trainings.start(training_id, actor, None, world.now)
        await make_version(world, training_id, users[1:])
        kinds = [type(event.payload) for event in await log(store, training_id, users[0])]
        assert RoundStarted in kinds
        assert WorkNotNeeded not in kinds
        view = await store.rounds.explain(training_id, None, actor)
        assert {one.rounds_left_out for one in view.members} == {0}


class TestVersions:
    async def test_those_that_updates_may_start_from_are_kept(self, store: Store, world: World) -> None:
        actor, (slow, *fast), training_id = await started(world, keep_versions=1)
        for _ in range(5):
            await make_version(world, training_id, fast)
        model_id = (await store.trainings.get(training_id, actor)).model_id
        page = await store.models.page_versions(model_id, actor, None, 100)
        assert sorted(one.version.version for one in page if one.version.stored) == [2, 3, 4, 5]
        await world.submit(training_id, 2, slow)
        await make_version(world, training_id, fast[:1])

    async def test_a_replay_needs_them(self, store: Store, world: World) -> None:
        actor, (slow, *fast), training_id = await started(world, keep_versions=1)
        await make_version(world, training_id, fast)
        await world.submit(training_id, 0, slow)
        await make_version(world, training_id, fast[:1])
        task = (await store.rounds.find_replay(training_id, 1, actor)).aggregation
        assert list(task.bases) == [0]
        for _ in range(2):
            await make_version(world, training_id, fast)
        with pytest.raises(ReplayImpossible, match="files of version 0, which version 2 was made from"):
            await store.rounds.find_replay(training_id, 1, actor)

    async def test_the_ledger_names_them(self, store: Store, world: World) -> None:
        _, (slow, *fast), training_id = await started(world)
        await make_version(world, training_id, fast)
        await world.submit(training_id, 0, slow)
        await make_version(world, training_id, fast[:1])
        assert [one["base_version"] for one in await recorded(store, "update_accepted")] == [0, 0, 0, 1]
        lists = [one["updates"] for one in await recorded(store, "updates_counted")]
        assert sorted(one["base_version"] for one in lists[1]) == [0, 1]
        await check(store)
