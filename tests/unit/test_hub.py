"""Wake-ups: none is lost, and only waiters are remembered."""

import asyncio

from fedround_server.wakeups import Hub


async def test_those_who_follow_a_topic_are_woken() -> None:
    hub = Hub()
    with hub.waiter() as first, hub.waiter() as second:
        first.follow(["a", "b"])
        second.follow(["b"])
        hub.notify("a")
        assert await first.wait(5)
        assert not await second.wait(0.01)
        hub.notify("b")
        assert await first.wait(5)
        assert await second.wait(5)


async def test_a_wake_up_before_the_wait_counts_once() -> None:
    hub = Hub()
    with hub.waiter() as waiter:
        waiter.follow(["a"])
        for _ in range(3):
            hub.notify("a")
        assert await waiter.wait(5)
        assert not await waiter.wait(0.01)


async def test_a_wake_up_ends_a_wait_that_is_under_way() -> None:
    hub = Hub()
    with hub.waiter() as waiter:
        waiter.follow(["a"])
        waiting = asyncio.create_task(waiter.wait(30))
        await asyncio.sleep(0)
        hub.notify_all()
        assert await waiting


async def test_a_cancelled_wait_loses_no_wake_up() -> None:
    hub = Hub()
    with hub.waiter() as waiter:
        waiter.follow(["a"])
        waiting = asyncio.create_task(waiter.wait(30))
        await asyncio.sleep(0)
        hub.notify("a")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert await waiter.wait(5)


async def test_who_left_is_forgotten() -> None:
    hub = Hub()
    with hub.waiter() as waiter:
        waiter.follow(["a", "b"])
        waiter.follow(["a"])
    hub.notify("a", "b", "not followed")
    assert not await waiter.wait(0.01)
    assert hub._listeners == {}
