"""Measures what it costs to force small writes to a disk, in a journal and as files of their own."""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import keep

SIZE = 4096
REPEATS = 200
SECONDS = 5.0
"""How long each kind is measured at most: a slow disk has fewer repeats."""

Figures = dict[str, Any]


def measure_disk(folder: Path) -> Figures:
    """Measures the disk that a folder is on.

    Returns:
        The file system, and milliseconds (p50, p99) of 4 KiB that are appended to a file with one fdatasync, and of a
        new file of 4 KiB that is synced, renamed, and synced with its folder.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        own = Path(name)
        with durable_writes(own, os.urandom(SIZE)) as (append, store):
            return {"file_system": file_system(own), "fdatasync_ms": spread(append), "new_file_ms": spread(store)}


@contextmanager
def durable_writes(folder: Path, data: bytes) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """Yields two ways to force bytes to disk: at the end of a journal, and as a file with a name of its own."""
    journal = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def append() -> None:
        os.write(journal, data)
        os.fdatasync(journal)

    def store() -> None:
        descriptor = os.open(folder / "new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(descriptor, data)
        os.fsync(descriptor)
        os.close(descriptor)
        (folder / "new").rename(folder / "stored")
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)

    try:
        yield append, store
    finally:
        os.close(journal)


def spread(work: Callable[[], None]) -> Figures:
    """Returns the milliseconds that half, and 99 of 100, of many repeats take at most."""
    taken: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(taken) < REPEATS and time.perf_counter() < end:
        begin = time.perf_counter()
        work()
        taken.append((time.perf_counter() - begin) * 1e3)
    taken.sort()
    return {"p50": round(taken[len(taken) // 2], 3), "p99": round(taken[int(0.99 * (len(taken) - 1))], 3)}


def file_system(folder: Path) -> str:
    """Returns the type of the file system that a folder is on, as the kernel calls it."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    path = str(folder.resolve())
    found = [(mount[1], mount[2]) for mount in mounts if f"{path}/".startswith(f"{mount[1].rstrip('/')}/")]
    return max(found, key=lambda mount: len(mount[0]))[1] if found else "unknown"


def told(figures: Figures) -> str:
    """Says what was measured, in one line."""
    append, new = figures["fdatasync_ms"], figures["new_file_ms"]
    return (
        f"{figures['file_system']}; 4 KiB appended and synced (fdatasync) {append['p50']:.2f} ms, p99"
        f" {append['p99']:.2f} ms; a new file of 4 KiB, renamed, with its folder {new['p50']:.2f} ms, p99"
        f" {new['p99']:.2f} ms"
    )


def main() -> None:
    """Measures, prints, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=tempfile.gettempdir(), help="on the disk in question")
    figures = measure_disk(parser.parse_args().folder)
    print(f"disk: {told(figures)}")
    keep("disk", figures)


if __name__ == "__main__":
    main()
