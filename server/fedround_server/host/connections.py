"""The TCP connections of this process: how many unauthenticated ones there may be, and which are closed."""

import ipaddress
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

FOLDERS = (Path("/proc/self/fd"), Path("/dev/fd"))
"""Where the system lists the open files of a process."""
PAUSE = 0.05
"""Seconds between two scans at least. A scan takes a twentieth of the time at most."""
LONGEST_PAUSE = 2.0
"""Seconds between two scans at most, when the number of open files has not grown. These look at all of them again."""
GROWTH = 16
"""By how many open files it has to grow for a scan before that."""
OLD = 10.0
"""Seconds after which an unauthenticated connection is the first to be closed: authentication takes milliseconds."""


@dataclass(frozen=True, slots=True)
class _Connection:
    """An open connection.

    Attributes:
        peer: The peer, as gRPC writes it.
        since: When it was first seen, in seconds of the monotonic clock.
    """

    peer: str
    since: float


class Connections:
    """Closes connections of unauthenticated peers: those beyond a number, and those whose calls are all rejected.

    gRPC has no limit on the connections of an address and no way to close one. It owns the sockets, so this class finds
    them among the open files of the process and shuts them down; gRPC then frees what belongs to the connection.
    """

    def __init__(self, per_address: int, total: int, max_rejected: int) -> None:
        """Makes it for a port that is not bound yet.

        Args:
            per_address: Unauthenticated connections of one address.
            total: Unauthenticated connections of all addresses.
            max_rejected: Calls in a row of an unauthenticated connection that may be rejected.
        """
        self._per_address = per_address
        self._total = total
        self._max_rejected = max_rejected
        self._port = 0
        # What each descriptor is: a connection of the port, or something else.
        self._open: dict[int, _Connection | None] = {}
        self._authenticated: dict[str, None] = {}
        self._rejected: Counter[str] = Counter()
        self._over = threading.Event()

    def start(self, port: int) -> None:
        """Limits the connections to a port from now on, in a thread."""
        self._port = port
        threading.Thread(target=self._watch, name="connections", daemon=True).start()

    def stop(self) -> None:
        """Ends the thread."""
        self._over.set()

    def is_authenticated(self, peer: str) -> bool:
        """Returns whether the last call over a connection was authenticated."""
        return peer in self._authenticated

    def accept(self, peer: str) -> None:
        """Records an authenticated call over a connection."""
        self._authenticated[peer] = None
        self._rejected.pop(peer, None)

    def reject(self, peer: str) -> None:
        """Records a call that was not authenticated; closes the connection after too many in a row."""
        self._authenticated.pop(peer, None)
        self._rejected[peer] += 1
        if self._rejected[peer] >= self._max_rejected:
            self._rejected.pop(peer)
            self._close([peer])

    def _watch(self) -> None:
        count, complete, pause = 0, 0.0, PAUSE
        while not self._over.wait(pause):
            now, before = time.monotonic(), count
            count, due = _count_descriptors(), now - complete >= LONGEST_PAUSE
            if count and count < before + GROWTH and not due:
                # So that a slow growth is seen, too.
                count = min(count, before)
                continue
            self._scan(now, complete=due)
            self._close(self._surplus(now))
            if due:
                complete = now
            pause = max(PAUSE, 20 * (time.monotonic() - now))

    def _scan(self, now: float, *, complete: bool) -> None:
        """Finds the open connections.

        Args:
            now: The time.
            complete: Whether to look at descriptors again that were something else, or an authenticated connection.
        """
        found: dict[int, _Connection | None] = {}
        for descriptor in _descriptors():
            known = self._open.get(descriptor)
            if complete or descriptor not in self._open or (known and known.peer not in self._authenticated):
                peer = _peer(descriptor, self._port)
                if peer is None:
                    known = None
                elif known is None or known.peer != peer:
                    known = _Connection(peer, now)
            found[descriptor] = known
        self._open = found
        if complete:
            peers = {one.peer for one in found.values() if one}
            for records in (self._authenticated, self._rejected):
                for peer in [peer for peer in tuple(records) if peer not in peers]:
                    records.pop(peer, None)

    def _surplus(self, now: float) -> set[str]:
        """Returns the unauthenticated connections that are too many."""
        waiting = [one for one in self._open.values() if one and one.peer not in self._authenticated]
        by_address: dict[str, list[str]] = {}
        # In the order in which they are kept: the new ones as they came, then the old ones, the last of them first.
        for one in sorted(waiting, key=lambda one: (now - one.since > OLD, abs(now - OLD - one.since))):
            by_address.setdefault(address_of(one.peer), []).append(one.peer)
        limit = self._per_address
        while limit > 1 and sum(min(limit, len(peers)) for peers in by_address.values()) > self._total:
            limit -= max(1, limit // 8)
        kept = [peer for peers in by_address.values() for peer in peers[:limit]][: self._total]
        return {one.peer for one in waiting} - set(kept)

    def _close(self, peers: Collection[str]) -> None:
        for descriptor in _descriptors() if peers else ():
            if _peer(descriptor, self._port) in peers:
                with suppress(OSError):
                    # gRPC may close it meanwhile, and another file may get its number: the copy stays what it is.
                    copy = socket.socket(fileno=os.dup(descriptor))
                    if _peer(copy.fileno(), self._port) in peers:
                        copy.shutdown(socket.SHUT_RDWR)
                    copy.close()


def address_of(peer: str) -> str:
    """Returns the address of a peer such as ipv4:127.0.0.1:1234; for IPv6 its /64 network, which one user has whole."""
    host = unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


def _descriptors() -> list[int]:
    with os.scandir(next(folder for folder in FOLDERS if folder.exists())) as entries:
        return [int(entry.name) for entry in entries]


def _count_descriptors() -> int:
    """Returns the number of open files, or 0 if the system does not tell (Linux does, since 6.2)."""
    return FOLDERS[0].stat().st_size if FOLDERS[0].exists() else 0


def _peer(descriptor: int, port: int) -> str | None:
    """Returns the peer of a connection to a port, as gRPC writes it; None if the descriptor is something else."""
    try:
        one = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, descriptor)
    except OSError:
        return None
    try:
        return _format(*one.getpeername()) if one.getsockname()[1:2] == (port,) else None
    except OSError:
        return None
    finally:
        one.detach()


def _format(host: str, port: int, _flow: int = 0, _scope: int = 0) -> str:
    plain = host.removeprefix("::ffff:")
    if ":" not in plain:
        return f"ipv4:{plain}:{port}"
    return f"ipv6:{quote(f'[{host}]', safe=':')}:{port}"
