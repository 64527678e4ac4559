"""What replicas need without a database: its time, and how topics fit into notifications."""

from datetime import UTC, datetime, timedelta

import pytest

from calls import new_id
from fedround_server.store.db.lease import DatabaseClock, elapsed
from fedround_server.store.db.replica_session import EVERYTHING, _payloads


def test_topics_are_packed_into_payloads_that_postgresql_takes() -> None:
    topics = [new_id() for _ in range(1000)]
    payloads = list(_payloads(topics))
    assert max(map(len, payloads)) < 8000
    assert sorted("\n".join(payloads).split("\n")) == sorted(topics)
    assert len(payloads) < 7
    assert list(_payloads([])) == []
    assert EVERYTHING not in topics


def test_the_time_is_the_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, passed = DatabaseClock(), 100.0
    monkeypatch.setattr("fedround_server.store.db.lease.elapsed", lambda: passed)
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=5)
    # An hour behind that of the machine, and known to a tenth of a second.
    clock.learn(100.0, 100.2, 3600.0)
    assert clock.now() == datetime.fromtimestamp(3599.9, UTC)
    passed = 200.0
    assert clock.now() == datetime.fromtimestamp(3699.9, UTC)
    # What agrees with it changes nothing.
    clock.learn(200.0, 200.4, 3700.05)
    assert clock.now() == datetime.fromtimestamp(3699.9, UTC)
    clock.learn(200.0, 200.0, 5000.0)
    assert clock.now() == datetime.fromtimestamp(5000, UTC)


def test_how_far_the_clock_of_the_machine_is_off() -> None:
    clock = DatabaseClock()
    assert abs(clock.ahead()) < 5
    now, passed = datetime.now(UTC).timestamp(), elapsed()
    for hours in (-1, 1):
        clock.learn(passed, passed, now - hours * 3600)
        assert abs(clock.ahead() - hours * 3600) < 5
