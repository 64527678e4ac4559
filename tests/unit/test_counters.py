"""Counters: histograms, reasons, and the times of jobs that wait for each other."""

import asyncio
from datetime import timedelta

import pytest

from fedround_server import counters as module
from fedround_server.counters import Counters, Histogram, JobQueue


def test_a_duration_is_counted_in_every_bucket_that_has_room_for_it() -> None:
    found = Histogram((1, 10))
    for seconds in (0.5, 1.0, 2.0, 11.0):
        found.add(seconds)
    assert found.cumulative() == [(1, 2), (10, 3), (float("inf"), 4)]
    assert (found.count, found.seconds) == (4, 14.5)


def test_reasons_that_participants_invent_share_a_count() -> None:
    found = Counters()
    for reason in ("TRAIN_FAILED", "MINE", "YOURS"):
        found.add_failures(reason)
    found.add_failures("ABSENT", 3)
    assert found.failures == {"TRAIN_FAILED": 1, "OTHER": 2, "ABSENT": 3}


def test_a_clock_that_was_set_back_makes_no_negative_duration() -> None:
    found = Counters()
    found.add_round(timedelta(seconds=-5), timedelta(seconds=1))
    assert (found.collecting.seconds, found.aggregating.seconds) == (0, 1)


def test_jobs_that_wait_are_told_from_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    queue = JobQueue()
    with queue.job("aggregation"):
        second = queue.job("check")
        second.__enter__()
        assert (queue.running, queue.waiting) == (1, 1)
        now = 3.0
    now = 5.0
    second.__exit__(None, None, None)
    assert (queue.running, queue.waiting) == (0, 0)
    assert (queue.jobs["aggregation"].seconds, queue.waits["aggregation"]) == (3, 0)
    assert (queue.jobs["check"].seconds, queue.waits["check"]) == (2, 3)


def test_a_job_that_fails_is_counted_and_one_that_is_cancelled_is_not() -> None:
    queue = JobQueue()
    for error in (ValueError, asyncio.CancelledError):
        with pytest.raises(error), queue.job("check"):
            raise error
    assert (queue.jobs["check"].count, queue.in_progress) == (1, 0)
