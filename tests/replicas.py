"""Several servers on one PostgreSQL database, each with a data directory of its own, and all objects in one folder."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc

from calls import Person, until
from fedround.v1 import user_pb2
from servers import Server

# The program of a server whose machine has a clock that is an hour ahead.
AHEAD = (
    "-c",
    """
import datetime, sys, time
real, now = datetime.datetime, time.time
class Ahead(real):
    @classmethod
    def now(cls, tz=None):
        return real.now(tz) + datetime.timedelta(hours=1)
datetime.datetime = Ahead
time.time = lambda: now() + 3600
from fedround_server.__main__ import main
sys.exit(main())
""",
)


def replica(folder: Path, number: int, database: str, **options: Any) -> Server:
    """A server that is not running yet. All of a folder have their objects in one place."""
    objects, data_dir = folder / "shared" / "objects", folder / f"replica{number}"
    objects.mkdir(mode=0o700, parents=True, exist_ok=True)
    data_dir.mkdir(mode=0o700)
    (data_dir / "objects").symlink_to(objects)
    return Server(data_dir, database=database, **options)


@contextmanager
def replicas(folder: Path, database: str, count: int = 2, **options: Any) -> Iterator[list[Server]]:
    """Running servers, which know of each other; the first one has the admin's token."""
    with ExitStack() as stack:
        yield [stack.enter_context(replica(folder, number, database, **options)) for number in range(count)]


def person(server: Server, token: str) -> Person:
    """A user at a server, with a channel of its own."""
    found = Person(grpc.insecure_channel(server.address), token)
    found.user_id = found.users.GetMyself(user_pb2.GetMyselfRequest()).user.user_id
    return found


def pause(server: Server) -> None:
    """Stops a server in the middle of what it does."""
    os.kill(server.pid, signal.SIGSTOP)
    until(lambda: " T " in (Path("/proc") / str(server.pid) / "stat").read_text())


def resume(server: Server) -> None:
    os.kill(server.pid, signal.SIGCONT)
