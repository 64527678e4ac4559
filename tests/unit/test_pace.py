"""Pace steering: how often devices call, however many there are and whatever happens to the server."""

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedround_server.domain.pace import (
    IDLE,
    LONGEST,
    SHORTEST,
    TARGET,
    ReturningDevices,
    latest_return,
    mean_wait,
    wait,
)

RATE = 50.0
LEAST = timedelta(seconds=10)
BIN = 10.0
"""Seconds over which calls are counted: 500 are allowed, and their number varies by some 20."""


@dataclass
class Simulation:
    """Devices and a server, which may be restarted.

    Attributes:
        calls: How many calls came in each bin.
    """

    seed: int
    now: float = 0.0
    calls: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._queue: list[tuple[float, int, float]] = []  # when, which device, and what it was told
        self.restart()

    def restart(self) -> None:
        self._until: dict[int, float] = {}
        self._returning = ReturningDevices(self.now)

    def add(self, first: int, number: int, within: float) -> None:
        """Adds devices that call for the first time within some seconds from now."""
        for device in range(first, first + number):
            heapq.heappush(self._queue, (self.now + within * self._random.random(), device, 0.0))

    def run(self, until: float) -> None:
        while self._queue and self._queue[0][0] < until:
            self.now, device, told = heapq.heappop(self._queue)
            self.calls[int(self.now / BIN)] += 1
            if device not in self._until and told:
                self._returning.add(timedelta(seconds=told), self.now)
            devices = max(len(self._until) + (device not in self._until), self._returning.estimate(self.now))
            mean = mean_wait(devices, RATE, LEAST, is_idle=False)
            next_wait = wait(mean, self._random.random())
            self._until[device] = self.now + latest_return(next_wait).total_seconds()
            heapq.heappush(self._queue, (self.now + next_wait.total_seconds(), device, next_wait.total_seconds()))
        self.now = until

    def busiest(self, begin: float, end: float) -> float:
        """Returns the calls per second of the busiest bin of a time."""
        return max(self.calls[number] for number in range(int(begin / BIN), int(end / BIN))) / BIN


# Six standard deviations of the number of calls in a bin that has as many as are allowed.
NOISE = 6 * (RATE * BIN) ** 0.5 / BIN


@pytest.mark.parametrize("seed", range(3))
def test_devices_that_came_one_by_one_call_below_the_rate(seed: int) -> None:
    one = Simulation(seed)
    one.add(0, 10_000, within=250)
    one.run(1500)
    assert one.busiest(500, 1500) < RATE + NOISE
    mean = sum(one.calls[number] for number in range(50, 150)) / 1000
    assert 0.7 * RATE < mean < 0.9 * RATE


@pytest.mark.parametrize("seed", range(3))
def test_a_herd_does_not_come_back_as_one(seed: int) -> None:
    one = Simulation(seed)
    one.add(0, 10_000, within=1)
    one.run(1500)
    assert one.calls[0] >= 10_000
    assert one.busiest(10, 1500) < RATE + NOISE


@pytest.mark.parametrize("seed", range(3))
def test_a_restart_makes_no_herd(seed: int) -> None:
    one = Simulation(seed)
    one.add(0, 10_000, within=250)
    for restart in (600, 605, 800):
        one.run(restart)
        one.restart()
    one.run(2000)
    assert one.busiest(600, 2000) < RATE + NOISE


def test_a_restart_with_few_devices_does_not_slow_them_down() -> None:
    one = Simulation(1)
    one.add(0, 5, within=5)
    one.run(100)
    one.restart()
    one.run(200)
    # Each calls every ten seconds on average.
    assert sum(one.calls[number] for number in range(10, 20)) >= 35


@given(
    devices=st.floats(0, 1e7),
    rate=st.floats(0.01, 1e5),
    shortest=st.floats(0.01, 3600),
    draw=st.floats(0, 1),
    is_idle=st.booleans(),
)
def test_the_rate_is_bounded_and_the_window_is_kept(
    devices: float, rate: float, shortest: float, draw: float, is_idle: bool
) -> None:
    least = timedelta(seconds=shortest)
    mean = mean_wait(devices, rate, least, is_idle=is_idle)
    assert mean >= least * (IDLE if is_idle else 1)
    assert devices / mean.total_seconds() <= rate * TARGET * 1.001
    waited = wait(mean, draw)
    step = timedelta(microseconds=2)
    assert mean * SHORTEST - step <= waited <= mean * LONGEST + step
    assert latest_return(waited) > waited


def test_waiting_times_are_spread_evenly() -> None:
    draws = random.Random(1)
    mean = timedelta(seconds=100)
    bins = Counter(int(wait(mean, draws.random()).total_seconds() // 10) for _ in range(10_000))
    assert set(bins) == set(range(5, 15))
    assert all(850 < count < 1150 for count in bins.values())


@given(waited=st.lists(st.floats(1, 1000), min_size=200, max_size=200), seconds=st.floats(1, 300))
def test_the_estimate_follows_from_how_long_devices_have_waited(waited: list[float], seconds: float) -> None:
    returning = ReturningDevices(0.0)
    for number, one in enumerate(waited):
        returning.add(timedelta(seconds=one), seconds * (number + 1) / len(waited))
    devices = returning.estimate(seconds)
    # Each second, devices that wait together have waited as many seconds as there are devices.
    assert min(waited) / 3 < devices / (len(waited) / seconds) < max(waited) * 3


def test_a_lie_does_not_count_for_more_than_a_day() -> None:
    honest, lying = ReturningDevices(0.0), ReturningDevices(0.0)
    honest.add(timedelta(days=1), 100.0)
    lying.add(timedelta(days=10_000), 100.0)
    assert honest.estimate(100.0) == lying.estimate(100.0) < 3100
    assert lying.estimate(400.0) < 1
