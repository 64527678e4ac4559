"""Forecasts of arrivals and of the end of a round, as properties."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from fedround_server.domain.forecast import arrival, end

T0 = datetime(2026, 1, 1, tzinfo=UTC)
spans = st.integers(0, 10**6).map(lambda seconds: timedelta(seconds=seconds))
times = spans.map(lambda span: T0 + span)
histories = st.lists(spans, max_size=20)
arrivals = st.lists(st.none() | times, min_size=1, max_size=20)


@given(times, histories, times)
def test_an_arrival_is_never_in_the_past_and_otherwise_after_the_median(
    asked: datetime, durations: list[timedelta], now: datetime
) -> None:
    found = arrival(asked, durations, now)
    if not durations:
        assert found is None
        return
    assert found is not None
    assert found >= now
    ordered = sorted(durations)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    if asked + low > now:
        assert asked + low <= found <= asked + high
    assert arrival(asked, list(reversed(durations)), now) == found
    later = timedelta(hours=1)
    assert arrival(asked + later, durations, now + later) == found + later


@given(times, st.lists(spans, min_size=3, max_size=20), times)
def test_one_outlier_does_not_move_an_arrival_beyond_the_others(
    asked: datetime, durations: list[timedelta], now: datetime
) -> None:
    found = arrival(asked, [*durations, timedelta(days=365)], now)
    assert found is not None
    assert found <= max(now, asked + max(durations))


@given(arrivals, st.data(), st.none() | times)
def test_the_end_is_the_kth_arrival_or_the_deadline(
    found: list[datetime | None], data: st.DataObject, deadline: datetime | None
) -> None:
    expected = data.draw(st.integers(1, len(found)))
    known = [time for time in found if time is not None]
    ending = end(found, expected, deadline)
    if len(known) < expected:
        assert ending is None
        return
    assert ending is not None
    assert deadline is None or ending <= deadline
    if deadline is None or ending < deadline:
        # Enough updates have arrived at that time, and too few before it.
        assert sum(time <= ending for time in known) >= expected
        assert sum(time < ending for time in known) < expected
    assert end(data.draw(st.permutations(found)), expected, deadline) == ending


@given(arrivals, st.data())
def test_a_round_that_expects_more_updates_ends_no_earlier(found: list[datetime | None], data: st.DataObject) -> None:
    expected = data.draw(st.integers(1, len(found)))
    sooner, later = end(found, expected, None), end(found, expected + 1, None)
    assert later is None or (sooner is not None and sooner <= later)
