"""What the log has of an outage of the database."""

import logging

import pytest

from fedround_server.coordinator.outages import level_of
from fedround_server.domain.errors import ObjectsUnavailable, StoreUnavailable, WorkerKilled
from fedround_server.store.db.outage import LONG_SECONDS, Outage


def test_an_outage_is_logged_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    time = 0.0
    outage = Outage(lambda: time)
    with caplog.at_level(logging.INFO):
        for problem in ("connection refused", "connection refused", "the database is starting up"):
            outage.failed(problem)
            time += 20
        outage.answered()
        outage.answered()
        assert caplog.messages == [
            "the database does not answer: connection refused",
            "the database answers again, after 60 s",
        ]
        caplog.clear()
        outage.failed("deadlock detected")
        time += LONG_SECONDS / 2
        outage.answered()
        assert caplog.messages == ["the database does not answer: deadlock detected"]


def test_background_work_does_not_log_outages_again() -> None:
    assert level_of(StoreUnavailable("x")) == level_of(ObjectsUnavailable("x")) == logging.DEBUG
    assert level_of(WorkerKilled("x")) == logging.WARNING
