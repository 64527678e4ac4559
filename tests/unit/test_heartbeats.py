"""Heartbeats: silent lines are woken, some at a time, and no others."""

import asyncio

from fedround_server.coordinator import heartbeats
from fedround_server.coordinator.heartbeats import Heartbeats


class Line:
    """Counts how often it is woken."""

    def __init__(self) -> None:
        self.last_sent = 0.0
        self.woken = asyncio.Event()
        self.count = 0

    def wake(self) -> None:
        self.woken.set()
        self.count += 1


async def test_silent_lines_are_woken_again_and_again() -> None:
    beats = Heartbeats(0.1)
    lines = [Line() for _ in range(2 * heartbeats.TURN + 1)]
    for line in lines:
        beats.sent(line)
        assert not beats.is_due(line)
    for _ in range(2):
        for line in lines:
            await line.woken.wait()
            assert beats.is_due(line)
            beats.sent(line)
            line.woken.clear()


async def test_a_line_that_does_not_answer_holds_no_other() -> None:
    beats = Heartbeats(0.05)
    stuck = [Line() for _ in range(2 * heartbeats.TURN)]
    for line in stuck:
        beats.sent(line)
    other = Line()
    beats.sent(other)
    await other.woken.wait()


async def test_a_line_that_does_not_answer_is_woken_once_in_the_time_of_a_heartbeat() -> None:
    beats = Heartbeats(0.2)
    stuck = Line()
    beats.sent(stuck)
    await stuck.woken.wait()
    began = asyncio.get_running_loop().time()
    for _ in range(3):
        stuck.woken.clear()
        await stuck.woken.wait()
    assert asyncio.get_running_loop().time() - began > 0.2
    assert stuck.count == 4


async def test_lines_that_are_gone_are_forgotten() -> None:
    beats = Heartbeats(0.05)
    gone, stays = Line(), Line()
    beats.sent(gone)
    beats.sent(stays)
    beats.forget(gone)
    await stays.woken.wait()
    assert not gone.woken.is_set()
    beats.forget(stays)
    while beats._timer is not None:
        await asyncio.sleep(0.01)
