"""Fails one call of the storage layer: a system call on a file of the data directory, or a statement of the database.

Calls are counted while nothing fails; then one after the other of them is failed in a run of its own.
"""

import errno
import io
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedround_server.store.db.run import Database

# Of the functions of os: whose first argument is a path, and whose first argument is a file descriptor.
BY_PATH = ("open", "mkdir", "unlink", "replace", "chmod", "utime")
BY_DESCRIPTOR = ("write", "pwritev", "fsync", "fdatasync", "ftruncate")
WRITES = ("open", "write", "pwritev", "mkdir", "replace", "fsync", "fdatasync", "put")


@dataclass(frozen=True)
class Fault:
    """What fails: the so manieth call of a name, and how.

    The ways are EIO, ENOSPC, SHORT (half is written) and FULL (half is written, then no more); for statements BEFORE
    (nothing is carried out) and AFTER (it is, and the result is lost). With PostgreSQL the connection is gone, too.
    """

    call: str
    number: int
    way: str


@dataclass
class Storage:
    """Counts the calls, and fails one."""

    folder: Path
    fault: Fault | None = None
    calls: list[str] = field(default_factory=list)
    fired: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._full = False

    def faults(self) -> Iterator[Fault]:
        """All faults that the calls so far could have had."""
        counted: dict[str, int] = {}
        for call in self.calls:
            number = counted[call] = counted.get(call, 0) + 1
            for way in _ways(call):
                yield Fault(call, number, way)

    def meet(self, call: str) -> str | None:
        """Counts a call; returns in which way it fails."""
        with self._lock:
            self.calls.append(call)
            if self._full:
                self._full = False
                return "ENOSPC"
            if self.fault is None or self.fired.is_set() or self.fault.call != call:
                return None
            if self.calls.count(call) != self.fault.number:
                return None
            self._full = self.fault.way == "FULL"
            self.fired.set()
            return self.fault.way

    def committed(self, cursor: Any) -> None:
        """Called at each commit."""

    def concerns(self, place: object) -> bool:
        """Returns whether a path or a descriptor is of the data directory, the database's own files aside."""
        try:
            path = Path(f"/proc/self/fd/{place}").readlink() if isinstance(place, int) else Path(os.fspath(place))  # type: ignore[call-overload]
        except (OSError, TypeError):
            return False
        return path.is_relative_to(self.folder) and not path.name.startswith("fedround.db")


def _ways(call: str) -> tuple[str, ...]:
    if call == "COMMIT":
        return ("BEFORE", "AFTER")
    if call.isupper():
        return ("BEFORE",)
    if call in ("write", "pwritev", "put"):
        return ("EIO", "ENOSPC", "FULL", *(("SHORT",) if call != "put" else ()))
    return ("EIO", "ENOSPC") if call in WRITES else ("EIO",)


@contextmanager
def failing(storage: Storage) -> Iterator[None]:
    """Has all calls pass the storage for the time of the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (*BY_PATH, *BY_DESCRIPTOR):
            patch.setattr(os, name, _counted(storage, name, getattr(os, name)))
        opened = io.open
        patch.setattr(io, "open", lambda file, *args, **kwargs: _file(storage, opened, file, *args, **kwargs))
        connect = Database.open
        patch.setattr(Database, "open", lambda self: (_watch(storage, self), connect(self))[1])
        yield


def _counted(storage: Storage, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(place: Any, *args: Any, **kwargs: Any) -> Any:
        way = storage.meet(name) if storage.concerns(place) else None
        if way in ("SHORT", "FULL"):
            # One piece of several, or half of the bytes.
            data, *position = args
            return function(place, data[: max(1, len(data) // 2)], *position)
        if way is not None:
            raise OSError(getattr(errno, way), os.strerror(getattr(errno, way)))
        return function(place, *args, **kwargs)

    return call


def _file(storage: Storage, opened: Callable[..., Any], file: Any, *args: Any, **kwargs: Any) -> Any:
    """Opens a file; one that is made passes what is written to it on to the storage."""
    if not (storage.concerns(file) and args and "x" in args[0]):
        return opened(file, *args, **kwargs)
    way = storage.meet("open")
    if way is not None:
        raise OSError(getattr(errno, way), os.strerror(getattr(errno, way)))
    return _Written(storage, opened(file, *args, **kwargs))


class _Written:
    """A file that the engine writes."""

    def __init__(self, storage: Storage, file: Any) -> None:
        self._storage = storage
        self._file = file

    def write(self, data: Any) -> Any:
        self._meet("put")
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _meet(self, call: str) -> None:
        way = self._storage.meet(call)
        if way is not None:
            code = errno.ENOSPC if way == "FULL" else getattr(errno, way)
            raise OSError(code, os.strerror(code))


def _watch(storage: Storage, database: Database) -> None:
    """Has all statements of a database pass the storage."""
    inner = database._peewee
    cursor = inner.cursor
    inner.cursor = lambda *args, **kwargs: _Cursor(storage, cursor(*args, **kwargs))  # type: ignore[method-assign]


class _Cursor:
    """A cursor that counts what it executes."""

    def __init__(self, storage: Storage, cursor: Any) -> None:
        self._storage = storage
        self._cursor = cursor

    def execute(self, sql: str, *args: Any) -> Any:
        way = self._storage.meet(sql.split(None, 1)[0].upper())
        if way != "BEFORE":
            answer = self._cursor.execute(sql, *args)
        if sql == "COMMIT":
            self._storage.committed(self._cursor)
        if way is None:
            return answer
        if isinstance(self._cursor, sqlite3.Cursor):
            raise sqlite3.OperationalError("disk I/O error")
        import psycopg

        self._cursor.connection.close()
        raise psycopg.OperationalError("the connection is closed")

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)
