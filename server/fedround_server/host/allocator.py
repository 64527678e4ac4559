"""Keeps a process quick and small that moves large files and holds thousands of calls for hours."""

import asyncio
import ctypes
import gc
from collections.abc import Callable

from fedround_wire import allocator

LARGEST = 4 << 20
"""Blocks up to this size are kept when they are freed; gRPC's messages and torch's blocks are smaller."""
KEPT = 32 << 20
"""How much free memory is kept at the end of each heap."""
SECONDS = 5.0
"""How often calls are counted."""
ENDED = 200
"""So many calls fewer than before, and memory is given back: it takes some milliseconds."""
TIMES = 12
"""How often, then: connections end after their calls."""


def keep_freed_blocks() -> None:
    """Has freed blocks as large as a chunk of a file kept for the next one."""
    allocator.keep_freed(LARGEST, KEPT)


def set_up() -> None:
    """Has the garbage collector of this process look less often, and never at what is there now, after the start.

    By default it goes through the objects of all calls whenever some thousands of new objects come together: with
    thousands of subscriptions that takes more time than the calls themselves.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 10)


async def give_back(count: Callable[[], int], trim: Callable[[int], object] | None = None) -> None:
    """Has the C library give memory back to the system whenever many calls have ended; it would keep it for good.

    Args:
        count: Tells how many calls are under way.
        trim: Gives back all but so many bytes; None for the C library's own, if it has one.
    """
    if trim is None:
        # glibc has it, others need it less.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return
    most = due = 0
    while True:
        await asyncio.sleep(SECONDS)
        now = count()
        if most - now >= ENDED:
            most, due = now, TIMES
            gc.collect()
        most = max(most, now)
        if due:
            due -= 1
            await asyncio.to_thread(trim, 0)
