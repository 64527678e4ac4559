"""Work that goes on although its caller has left: what is logged of its errors."""

import asyncio
import gc
import logging

import pytest

from fedround_server.coordinator.tasks import Tasks
from fedround_server.domain.errors import StoreUnavailable


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (StoreUnavailable("the database does not answer"), []),
        (ValueError("a fault"), [("fedround_server.coordinator.tasks", "work whose caller has left has failed")]),
    ],
)
async def test_of_work_whose_caller_has_left_only_faults_are_logged(
    error: Exception, logged: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    tasks, begun, goes_on = Tasks(), asyncio.Event(), asyncio.Event()

    async def fail() -> None:
        begun.set()
        await goes_on.wait()
        raise error

    caller = asyncio.create_task(tasks.run_shielded(fail()))
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    goes_on.set()
    await tasks.drain()
    # asyncio logs an error that nothing has asked for when its task is collected.
    await asyncio.sleep(0)
    gc.collect()
    assert [(one.name, one.getMessage()) for one in caplog.records if one.levelno >= logging.ERROR] == logged


async def test_a_caller_that_waits_gets_the_error_and_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        await Tasks().run_shielded(fail())
    gc.collect()
    assert not caplog.records
