"""Memory is given back when many calls have ended, and for a while."""

import asyncio
import gc
import subprocess
import sys

import pytest

from fedround_server.host import allocator

SET_UP = """
import gc
from fedround_server.host import allocator
allocator.set_up()
print(gc.get_freeze_count(), *gc.get_threshold())
"""


async def test_memory_is_given_back_when_many_calls_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "SECONDS", 0.0)
    monkeypatch.setattr(allocator, "TIMES", 2)
    many = allocator.ENDED
    # A few end, then many at once, then many bit by bit.
    counts = [many, many - 1, 2 * many, many, many, many, many // 2, 10, 0, 0, 0]
    looked: list[int] = []
    trimmed: list[int] = []

    def count() -> int:
        looked.append(counts[len(looked)] if len(looked) < len(counts) else 0)
        return looked[-1]

    task = asyncio.create_task(allocator.give_back(count, lambda _: trimmed.append(len(looked))))
    while len(looked) < len(counts) + 5:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert trimmed == [5, 6, 9, 10]


def test_the_collector_leaves_what_a_start_has_made() -> None:
    answer = subprocess.run([sys.executable, "-c", SET_UP], capture_output=True, text=True, check=True)
    frozen, *thresholds = map(int, answer.stdout.split())
    assert frozen > 1000
    assert thresholds[0] > gc.get_threshold()[0]
