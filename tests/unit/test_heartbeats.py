"""Heartbeats: silent lines are stirred, some at a time, and no others."""

import asyncio

from fedround_server.coordinator import heartbeats
from fedround_server.coordinator.heartbeats import Heartbeats


class Line:
    """Counts how often it is stirred."""

    def __init__(self) -> None:
        self.spoke = 0.0
        self.stirred = asyncio.Event()
        self.count = 0

    def stir(self) -> None:
        self.stirred.set()
        self.count += 1


async def test_silent_lines_are_stirred_again_and_again() -> None:
    beats = Heartbeats(0.1)
    lines = [Line() for _ in range(2 * heartbeats.TURN + 1)]
    for line in lines:
        beats.spoke(line)
        assert not beats.is_due(line)
    for _ in range(2):
        for line in lines:
            await line.stirred.wait()
            assert beats.is_due(line)
            beats.spoke(line)
            line.stirred.clear()


async def test_a_line_that_does_not_answer_holds_no_other() -> None:
    beats = Heartbeats(0.05)
    stuck = [Line() for _ in range(2 * heartbeats.TURN)]
    for line in stuck:
        beats.spoke(line)
    other = Line()
    beats.spoke(other)
    await other.stirred.wait()


async def test_a_line_that_does_not_answer_is_stirred_once_in_the_time_of_a_heartbeat() -> None:
    beats = Heartbeats(0.2)
    stuck = Line()
    beats.spoke(stuck)
    await stuck.stirred.wait()
    began = asyncio.get_running_loop().time()
    for _ in range(3):
        stuck.stirred.clear()
        await stuck.stirred.wait()
    assert asyncio.get_running_loop().time() - began > 0.2
    assert stuck.count == 4


async def test_lines_that_are_gone_are_forgotten() -> None:
    beats = Heartbeats(0.05)
    gone, stays = Line(), Line()
    beats.spoke(gone)
    beats.spoke(stays)
    beats.forget(gone)
    await stays.stirred.wait()
    assert not gone.stirred.is_set()
    beats.forget(stays)
    while beats._timer is not None:
        await asyncio.sleep(0.01)
