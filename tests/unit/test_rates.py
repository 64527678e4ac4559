"""Token buckets: bursts, rates and memory."""

import pytest

from fedround_server.host.connections import address_of
from fedround_server.interceptors import rate_limits as rates
from fedround_server.interceptors.rate_limits import BURST_SECONDS, Buckets


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def burst(buckets: Buckets, key: str) -> int:
    """Takes all tokens of a bucket."""
    count = 0
    while not buckets.wait(key):
        buckets.take(key)
        count += 1
    return count


def test_a_bucket_holds_a_minutes_worth_and_fills_up_again() -> None:
    time = Time()
    buckets = Buckets(4.0, time)
    assert burst(buckets, "one") == 4 * BURST_SECONDS
    assert buckets.wait("one") == 0.25
    assert not buckets.wait("two")
    time.now += 0.25
    assert burst(buckets, "one") == 1
    time.now += 10
    assert burst(buckets, "one") == 40
    time.now += 10 * BURST_SECONDS
    assert burst(buckets, "one") == 4 * BURST_SECONDS


def test_a_debt_has_to_be_paid_back() -> None:
    buckets = Buckets(4.0, Time())
    burst(buckets, "one")
    for _ in range(8):
        buckets.take("one")
    assert buckets.wait("one") == 0.25 + 2


def test_a_full_bucket_takes_no_memory() -> None:
    time = Time()
    buckets = Buckets(4.0, time)
    for number in range(1000):
        buckets.take(str(number))
    assert len(buckets._full_at) == 1000
    time.now += 0.25
    buckets.take("one")
    assert list(buckets._full_at) == ["one"]


def test_the_latest_callers_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MAX_KEYS", 10)
    buckets = Buckets(4.0, Time())
    burst(buckets, "busy")
    for number in range(1000):
        buckets.take(str(number))
        buckets.take("busy")
    assert len(buckets._full_at) == 10
    assert buckets.wait("busy") > 0


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:1234", "127.0.0.1"),
        ("ipv6:%5B::1%5D:1234", "::/64"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:1234", "2001:db8:1:2::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1234", "fe80::/64"),
        ("unix:/some/path", ""),
    ],
)
def test_an_address_is_a_network_in_ipv6(peer: str, address: str) -> None:
    assert address_of(peer) == address
