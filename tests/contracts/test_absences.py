"""Participants without a connection: rounds do not wait for them; on both databases."""

from datetime import timedelta
from pathlib import Path

from contracts.coordination import Coordination, coordinating
from contracts.test_failures import current, ending, failed
from fedround_server.coordinator.absences import INTERVAL
from fedround_server.domain.policy import RETURN_TIME, OnFailure, RoundPolicy
from fedround_server.store import Store

MINUTE = timedelta(minutes=1)
ABSENCE = RoundPolicy(absent_after=MINUTE)


async def look(coordination: Coordination, duration: timedelta = INTERVAL) -> None:
    """Advances the clock, and lets the server look for absent participants."""
    await coordination.clock.asleep(INTERVAL)
    coordination.clock.advance(duration)
    await coordination.clock.asleep(INTERVAL)


async def test_who_has_no_connection_for_so_long_is_out_and_back_in_the_next_round(
    store: Store, tmp_path: Path
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        actor, (first, second, third), training = await coordination.running(3, round_policy=ABSENCE)
        training_id, presence, now = training.training_id, coordination.context.presence, coordination.clock.now
        with presence.listening(first, now):
            with presence.listening(second, now):
                await coordination.coordinator.rounds.reconcile()
                await look(coordination, MINUTE / 2)
                await look(coordination, MINUTE / 2)
                assert await failed(store, training_id, actor) == {third: "ABSENT"}
            gone = now()
            await look(coordination, MINUTE / 2)
            assert await failed(store, training_id, actor) == {third: "ABSENT"}
            await look(coordination, MINUTE / 2)
            view = await store.rounds.explain(training_id, None, actor)
            messages = {one.user_id: one.failure.message for one in view.members if one.failure is not None}
            assert messages == {
                second: f"no connection since {gone.isoformat(timespec='seconds')}",
                third: "no connection since the start of the server",
            }
            # Submitting brings it back.
            await coordination.submit(training_id, 0, second)
            await coordination.submit(training_id, 0, first)
            await coordination.until(actor, training_id, lambda training: training.round == 1)
            assert (await current(store, training_id)).expected == 3
            with presence.listening(third, now):
                await look(coordination, MINUTE / 2)
                assert await failed(store, training_id, actor) == {}


async def test_a_call_in_progress_is_a_connection(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        actor, (first, second), training = await coordination.running(2, round_policy=ABSENCE)
        await coordination.coordinator.rounds.reconcile()
        coordination.context.presence.begin_call(first, coordination.clock.now())
        await look(coordination, 2 * MINUTE)
        assert await failed(store, training.training_id, actor) == {second: "ABSENT"}
        coordination.context.presence.end_call(first, coordination.clock.now())
        await look(coordination, 2 * MINUTE)
        await coordination.until(actor, training.training_id, lambda training: training.state.is_ended)
    failure = await ending(store, training.training_id, actor)
    assert failure.reason == "PARTICIPANTS_FAILED"
    assert "(ABSENT: no connection since" in failure.actor_message


async def test_a_report_takes_the_place_of_an_absence(store: Store, tmp_path: Path) -> None:
    policy = RoundPolicy(absent_after=MINUTE, on_failure=OnFailure.FAIL)
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        actor, (first, second), training = await coordination.running(2, round_policy=policy)
        training_id, presence = training.training_id, coordination.context.presence
        await coordination.coordinator.rounds.reconcile()
        with presence.listening(first, coordination.clock.now):
            await look(coordination, 2 * MINUTE)
            # An absence is no failure that ends the training.
            assert await failed(store, training_id, actor) == {second: "ABSENT"}
            await coordination.coordinator.rounds.report_failure(training_id, 0, second, "DISK_FULL", "")
            assert (await ending(store, training_id, actor)).reason == "PARTICIPANTS_FAILED"
            assert await failed(store, training_id, actor) == {second: "DISK_FULL"}


async def test_a_restarted_server_counts_anew(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path / "one") as coordination:
        await coordination.coordinator.recover()
        actor, _, training = await coordination.running(2, round_policy=ABSENCE)
        await coordination.coordinator.rounds.reconcile()
        await look(coordination, MINUTE - 2 * INTERVAL)
        assert await failed(store, training.training_id, actor) == {}
        passed = coordination.clock.now()
    async with coordinating(store, tmp_path / "two") as coordination:
        coordination.clock.advance(passed - coordination.clock.now())
        coordination.coordinator.rounds.absences._start = passed
        await coordination.coordinator.recover()
        await look(coordination, MINUTE - 2 * INTERVAL)
        assert await failed(store, training.training_id, actor) == {}
        await look(coordination, 2 * INTERVAL)
        await coordination.until(actor, training.training_id, lambda training: training.state.is_ended)


async def test_a_draining_server_takes_nobody_for_absent(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        actor, _, training = await coordination.running(2, round_policy=ABSENCE)
        await coordination.coordinator.rounds.reconcile()
        coordination.coordinator.start_draining()
        await look(coordination, 2 * MINUTE)
        assert await failed(store, training.training_id, actor) == {}


async def test_who_failed_and_is_gone_does_not_hold_up_the_next_rounds(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        await coordination.coordinator.recover()
        actor, (first, second, third), training = await coordination.running(3, target_num_updates=9)
        training_id, presence, now = training.training_id, coordination.context.presence, coordination.clock.now
        for user in (second, third):
            await coordination.coordinator.rounds.report_failure(training_id, 0, user, "X", "")
        await coordination.submit(training_id, 0, first)
        await coordination.until(actor, training_id, lambda training: training.round == 1)
        with presence.listening(third, now):
            await coordination.clock.asleep(INTERVAL)
            presence.see(second, now())
            await look(coordination, RETURN_TIME / 2)
            assert await failed(store, training_id, actor) == {}
            await look(coordination, RETURN_TIME / 2)
            assert await failed(store, training_id, actor) == {second: "ABSENT"}
            for user in (first, third):
                await coordination.submit(training_id, 1, user)
            await coordination.until(actor, training_id, lambda training: training.round == 2)
            # It is asked, and as it is not there, the round does not wait. Who has not failed is waited for.
            await look(coordination)
            assert await failed(store, training_id, actor) == {second: "ABSENT"}
        await look(coordination, MINUTE)
        assert await failed(store, training_id, actor) == {second: "ABSENT"}
