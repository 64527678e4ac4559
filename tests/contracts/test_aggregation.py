"""Rounds whose result cannot be computed or stored, on both databases."""

import errno
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from contracts.coordination import Coordination, coordinating, lose
from fedround_server.coordinator.aggregation import RETRY_DELAY
from fedround_server.domain.errors import DiskFull, ModelFormat, WorkerKilled
from fedround_server.domain.training import Training, TrainingState
from fedround_server.engine.executor import WorkerLost
from fedround_server.engine.jobs import AggregationFailed
from fedround_server.store import Store
from fedround_server.store.verbs.round import RoundVerbs


async def ended(coordination: Coordination) -> Training:
    """Runs a training of one update to its end."""
    actor, (client,), training = await coordination.running(1, target_num_updates=1)
    await coordination.submit(training.training_id, 0, client)
    return await coordination.until(actor, training.training_id, lambda training: training.state.is_ended)


async def test_an_aggregate_that_cannot_be_represented_is_reported(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        coordination.engine.error = AggregationFailed(
            "the aggregate of tensor 'w' has values that its dtype cannot hold"
        )
        failure = (await ended(coordination)).failure
    assert failure is not None
    assert (failure.reason, failure.message) == ("AGGREGATION_FAILED", str(coordination.engine.error))


@pytest.mark.parametrize(
    "error",
    [
        ModelFormat("secret"),
        RuntimeError("secret"),
        MemoryError("secret"),
        WorkerLost("secret"),
        FileNotFoundError(2, "No such file or directory", "/secret"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_any_error_ends_only_its_training_and_its_text_is_only_in_the_log(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        coordination.engine.error = error
        failure = (await ended(coordination)).failure
        coordination.engine.error = None
        assert (await ended(coordination)).state is TrainingState.COMPLETED
    assert failure is not None
    assert failure.reason == "AGGREGATION_FAILED"
    assert "secret" not in failure.message
    (record,) = [record for record in caplog.records if record.exc_info]
    assert failure.message.rpartition(" ")[2] in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error


async def test_a_commit_that_fails_ends_only_its_training(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = RoundVerbs.commit

    async def broken(*_: Any) -> bool:
        raise ValueError("Out of range float values are not JSON compliant: inf")

    async with coordinating(store, tmp_path) as coordination:
        monkeypatch.setattr(RoundVerbs, "commit", broken)
        failure = (await ended(coordination)).failure
        monkeypatch.setattr(RoundVerbs, "commit", commit)
        assert (await ended(coordination)).state is TrainingState.COMPLETED
    assert failure is not None
    assert failure.reason == "AGGREGATION_FAILED"
    assert "JSON" not in failure.message


async def test_a_worker_that_is_killed_from_outside_delays_its_training_without_failing_it(
    store: Store, tmp_path: Path
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        coordination.engine.error = WorkerKilled("out of memory")
        actor, (client,), training = await coordination.running(1, target_num_updates=1)
        await coordination.submit(training.training_id, 0, client)
        for _ in range(5):
            await coordination.clock.asleep(RETRY_DELAY)
            assert (await store.trainings.get(training.training_id, actor)).state is TrainingState.ONGOING
            coordination.clock.advance(RETRY_DELAY)
        await coordination.clock.asleep(RETRY_DELAY)
        coordination.engine.error = None
        coordination.clock.advance(RETRY_DELAY)
        after = await coordination.until(actor, training.training_id, lambda training: training.state.is_ended)
    assert (after.state, after.model_version) == (TrainingState.COMPLETED, 1)


async def test_updates_wait_while_the_disk_fails(store: Store, tmp_path: Path) -> None:
    async with coordinating(store, tmp_path) as coordination:
        coordination.engine.error = OSError(errno.EIO, "the disk fails")
        actor, (client,), training = await coordination.running(1, target_num_updates=1)
        await coordination.submit(training.training_id, 0, client)
        await coordination.clock.asleep(RETRY_DELAY)
        assert (await store.trainings.get(training.training_id, actor)).state is TrainingState.ONGOING
        coordination.engine.error = None
        coordination.clock.advance(RETRY_DELAY)
        after = await coordination.until(actor, training.training_id, lambda training: training.state.is_ended)
    assert after.state is TrainingState.COMPLETED


@pytest.mark.parametrize("verb", ["find_aggregation", "commit", "fail"])
async def test_a_verb_is_retried_while_the_database_does_not_answer(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    async with coordinating(store, tmp_path) as coordination:
        coordination.engine.error = AggregationFailed("out of range") if verb == "fail" else None
        lose(monkeypatch, RoundVerbs, verb, committed=False)
        actor, (client,), training = await coordination.running(1, target_num_updates=1)
        await coordination.submit(training.training_id, 0, client)
        await coordination.clock.asleep(RETRY_DELAY)
        assert (await store.trainings.get(training.training_id, actor)).state is TrainingState.ONGOING
        coordination.clock.advance(RETRY_DELAY)
        await coordination.until(actor, training.training_id, lambda training: training.state.is_ended)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_an_aggregation_is_retried_while_the_disk_is_full(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    pause = timedelta(seconds=DiskFull.retry_seconds)
    async with coordinating(store, tmp_path) as coordination:
        coordination.engine.error = OSError(code, "No space left on device", "/secret")
        actor, (client,), training = await coordination.running(1, target_num_updates=1)
        await coordination.submit(training.training_id, 0, client)
        for _ in range(5):
            await coordination.clock.asleep(pause)
            assert (await store.trainings.get(training.training_id, actor)).state is TrainingState.ONGOING
            coordination.clock.advance(pause)
        await coordination.clock.asleep(pause)
        coordination.engine.error = None
        coordination.clock.advance(pause)
        await coordination.until(
            actor, training.training_id, lambda training: training.state is TrainingState.COMPLETED
        )
    assert caplog.text.count(f"aggregation of training {training.training_id}: the server's disk is full") == 6
    assert list((tmp_path / "tmp").iterdir()) == []


async def test_a_result_that_does_not_fit_on_the_disk_leaves_no_file(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def full(folder: Path, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    async with coordinating(store, tmp_path) as coordination:
        monkeypatch.setattr(Path, "mkdir", full)
        actor, (client,), training = await coordination.running(1, target_num_updates=1)
        await coordination.submit(training.training_id, 0, client)
        await coordination.clock.asleep(timedelta(seconds=DiskFull.retry_seconds))
        assert list((tmp_path / "tmp").iterdir()) == []
        monkeypatch.setattr(Path, "mkdir", mkdir)
        coordination.clock.advance(timedelta(seconds=DiskFull.retry_seconds))
        await coordination.until(
            actor, training.training_id, lambda training: training.state is TrainingState.COMPLETED
        )
