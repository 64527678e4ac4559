"""Memory settings for a process that moves large files and holds thousands of calls for hours."""

import asyncio
import ctypes
import gc
from collections.abc import Callable

from fedround_wire import allocator

LARGEST = 4 << 20
"""Freed blocks up to this size are kept; gRPC's messages and torch's blocks are smaller."""
KEPT = 32 << 20
"""How much free memory is kept at the end of each heap, in bytes."""
HEAPS = 1
"""How many heaps there are. Threads that share one reuse each other's blocks; few allocate at the same time."""
SECONDS = 5.0
"""How often calls are counted."""
ENDED = 200
"""Memory is given back when the calls in progress have fallen by this many, and no longer fall so fast.

The garbage collector visits those that are left while all wait: it took a sixth of the time in which 10,000 ended.
"""
TIMES = 12
"""How often it is given back then: connections end after their calls."""


def keep_freed_blocks() -> None:
    """Makes the C library keep freed blocks that are as large as a chunk of a file, for the next chunk."""
    allocator.keep_freed(LARGEST, KEPT, HEAPS)


def set_up() -> None:
    """Makes the garbage collector of this process run less often, and exempts the objects that exist now.

    By default it visits the objects of all calls whenever some thousands of new objects exist: with thousands of
    subscriptions that takes more time than the calls themselves.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 10)


async def give_back(count: Callable[[], int], trim: Callable[[int], object] | None = None) -> None:
    """Returns free memory to the system whenever many calls have ended; the C library would keep it for good.

    Args:
        count: Returns how many calls are in progress.
        trim: Gives back all but so many bytes; None for the C library's own function, if it has one.
    """
    if trim is None:
        # glibc has it; other libraries need it less.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return
    most = before = due = 0
    while True:
        await asyncio.sleep(SECONDS)
        now = count()
        if most - now >= ENDED > before - now:
            most, due = now, TIMES
            gc.collect()
        most, before = max(most, now), now
        if due:
            due -= 1
            await asyncio.to_thread(trim, 0)
