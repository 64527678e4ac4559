"""RejectedUpdates, added up."""

from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from fedround_server.domain.rejected_update import Refusal, summed

T0 = datetime(2026, 1, 1, tzinfo=UTC)
refusals = st.builds(
    Refusal,
    st.sampled_from(["A", "B", "C"]),
    st.integers(1, 10),
    st.integers(0, 100).map(lambda seconds: T0 + timedelta(seconds=seconds)),
    st.text(max_size=3),
)


@given(st.lists(refusals, max_size=12))
def test_a_sum_counts_all_and_tells_the_latest(found: list[Refusal]) -> None:
    counts: Counter[str] = Counter()
    for refusal in found:
        counts[refusal.reason] += refusal.count
    total = summed(found)
    assert {one.reason: one.count for one in total} == counts
    assert [one.reason for one in total] == sorted(counts)
    for one in total:
        own = [refusal for refusal in found if refusal.reason == one.reason]
        assert one.last_time == max(refusal.last_time for refusal in own)
        assert (one.last_time, one.message) in {(refusal.last_time, refusal.message) for refusal in own}
