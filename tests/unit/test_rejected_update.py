"""Sums of rejected updates by reason."""

from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from fedround_server.domain.rejected_update import RejectedUpdate, sum_by_reason

T0 = datetime(2026, 1, 1, tzinfo=UTC)
rejected_updates = st.builds(
    RejectedUpdate,
    st.sampled_from(["A", "B", "C"]),
    st.integers(1, 10),
    st.integers(0, 100).map(lambda seconds: T0 + timedelta(seconds=seconds)),
    st.text(max_size=3),
)


@given(st.lists(rejected_updates, max_size=12))
def test_a_sum_counts_all_and_has_the_latest_message(rejected: list[RejectedUpdate]) -> None:
    counts: Counter[str] = Counter()
    for one in rejected:
        counts[one.reason] += one.count
    total = sum_by_reason(rejected)
    assert {one.reason: one.count for one in total} == counts
    assert [one.reason for one in total] == sorted(counts)
    for one in total:
        same = [other for other in rejected if other.reason == one.reason]
        assert one.last_time == max(other.last_time for other in same)
        assert (one.last_time, one.message) in {(other.last_time, other.message) for other in same}
