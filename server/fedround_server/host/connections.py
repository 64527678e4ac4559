"""The TCP connections of this process: how many unauthenticated ones there may be, and which are closed."""

import asyncio
import ipaddress
import os
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

FOLDERS = (Path("/proc/self/fd"), Path("/dev/fd"))
"""Where the system lists the open files of a process."""
PAUSE = 0.05
"""Seconds between two scans at least. A scan takes a twentieth of the time at most."""
COMPLETE = 2.0
"""Seconds between two complete scans, which look at all open files; the others look at what may be new."""
GROWTH = 16
"""By how many the open files have to grow for a scan between these."""
WINDOW = 20
"""Of how many looks at the waiting calls the fewest count as none: those that were cancelled are never taken."""
CALL_BYTES = 27
"""The smallest size of a call without a message: the head of a frame, and a compressed path and token."""
TCP_INFO, TCP_INFO_BYTES_RECEIVED = getattr(socket, "TCP_INFO", None), 128
OLD = 10.0
"""Seconds after which an unauthenticated connection is the first to be closed: authentication takes milliseconds."""


@dataclass(frozen=True, slots=True)
class _Connection:
    """An open connection.

    Attributes:
        peer: The peer, as gRPC writes it.
        since: When it was first seen, in seconds of the monotonic clock.
        received: How many bytes it had sent when it was last looked at.
    """

    peer: str
    since: float
    received: int


class Connections:
    """Closes connections of unauthenticated peers: those beyond a number, and those with many calls.

    These are the ones whose calls are all rejected, and, when more calls wait than the server can take, those that have
    sent the most bytes. gRPC has no limit on the connections of an address and no way to close one. It owns the
    sockets, so this class finds them among the open files of the process and shuts them down; gRPC then frees what
    belongs to the connection.
    """

    def __init__(
        self, per_address: int, total: int, max_rejected: int, received: Callable[[], int], max_waiting: int
    ) -> None:
        """Makes it for a port that is not bound yet.

        Args:
            per_address: Unauthenticated connections of one address.
            total: Unauthenticated connections of all addresses.
            max_rejected: Calls in a row of an unauthenticated connection that may be rejected.
            received: Returns how many calls gRPC has received, also those that were cancelled since.
            max_waiting: Calls that may wait for the server before connections are closed for it.
        """
        self._received = received
        self._max_waiting = max_waiting
        self._waited: deque[int] = deque([0], maxlen=WINDOW)
        self._taken = self._taken_before = 0
        self._has_rejected = False
        self._per_address = per_address
        self._total = total
        self._max_rejected = max_rejected
        self.is_flooded = False
        """Whether more calls wait than the server can take, and connections were closed for it."""
        self._port = 0
        self._count = 0
        # What each descriptor is: a connection of the port, or something else.
        self._open: dict[int, _Connection | None] = {}
        self._authenticated: dict[str, None] = {}
        self._rejected: Counter[str] = Counter()

    def take_count(self) -> int:
        """Returns how many calls were rejected, and connections opened or closed, since it was asked last."""
        count, self._count = self._count, 0
        return count

    def count(self) -> dict[str, int]:
        """Returns how many open connections of each state the last look at all open files found."""
        found = [one.peer in self._authenticated for one in self._open.values() if one]
        return {"authenticated": sum(found), "unauthenticated": len(found) - sum(found)}

    def take_call(self) -> None:
        """Records that the server has taken a call."""
        self._taken += 1

    def is_authenticated(self, peer: str) -> bool:
        """Returns whether the last call over a connection was authenticated."""
        return peer in self._authenticated

    def accept(self, peer: str) -> None:
        """Records an authenticated call over a connection."""
        self._authenticated[peer] = None
        self._rejected.pop(peer, None)

    def forget(self, peer: str) -> None:
        """Records that a connection is no longer an authenticated one."""
        self._authenticated.pop(peer, None)

    def reject(self, peer: str) -> None:
        """Records a rejected call, unless its connection is authenticated; closes it after too many in a row."""
        if peer in self._authenticated:
            return
        self._rejected[peer] += 1
        self._has_rejected = True
        self._count += 1
        if self._rejected[peer] >= self._max_rejected:
            self._rejected.pop(peer)
            # A complete one: the descriptor may have been something else when it was last looked at.
            self._scan(time.monotonic(), complete=True)
            self._close([peer])

    async def watch(self, port: int) -> None:
        """Limits the connections to a port, forever.

        In the event loop: a thread would wait for the interpreter's lock at each of its many system calls.
        """
        self._port = port
        count, complete, pause = 0, 0.0, PAUSE
        while True:
            await asyncio.sleep(pause)
            now, before = time.monotonic(), count
            count, due = _count_descriptors(), now >= complete
            is_flooded = self._are_too_many_waiting(due)
            if not is_flooded:
                self.is_flooded = False
            if count and count < before + GROWTH and not due and not is_flooded:
                # So that a slow growth is seen, too.
                count = min(count, before)
                continue
            self._scan(now, complete=due)
            heaviest = self._heaviest() if is_flooded else set()
            self.is_flooded = self.is_flooded or bool(heaviest)
            self._close(self._surplus(now) | heaviest)
            taken = time.monotonic() - now
            pause = max(PAUSE, 20 * taken)
            if due:
                complete = now + max(COMPLETE, 100 * taken)

    def _are_too_many_waiting(self, due: bool) -> bool:
        # Asking gRPC takes 0.03 ms for each connection. It matters only when calls are rejected: no others close a
        # connection. The other looks, every few seconds, know of the calls that were cancelled.
        if self._taken == self._taken_before or not (due or self._has_rejected or self.is_flooded):
            return False
        self._taken_before, self._has_rejected = self._taken, False
        self._waited.append(self._received() - self._taken)
        return self._waited[-1] - min(self._waited) > self._max_waiting

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
                peer, received = _inspect(descriptor, self._port)
                is_new = known is None or known.peer != peer
                self._count += is_new and peer is not None
                since = now if known is None or is_new else known.since
                known = None if peer is None else _Connection(peer, since, received)
            found[descriptor] = known
        self._open = found
        if complete:
            peers = {one.peer for one in found.values() if one}
            for records in (self._authenticated, self._rejected):
                for peer in [peer for peer in tuple(records) if peer not in peers]:
                    records.pop(peer, None)

    def _surplus(self, now: float) -> set[str]:
        """Returns the unauthenticated connections that are too many."""
        unknown = self._unauthenticated()
        by_address: dict[str, list[str]] = {}
        # In the order in which they are kept: the new ones as they came, then the old ones, the last of them first.
        for one in sorted(unknown, key=lambda one: (now - one.since > OLD, abs(now - OLD - one.since))):
            by_address.setdefault(address_of(one.peer), []).append(one.peer)
        limit = self._per_address
        while limit > 1 and sum(min(limit, len(peers)) for peers in by_address.values()) > self._total:
            limit -= max(1, limit // 8)
        kept = [peer for peers in by_address.values() for peer in peers[:limit]][: self._total]
        return {one.peer for one in unknown} - set(kept)

    def _heaviest(self) -> set[str]:
        """Returns the connections with rejected calls that have sent the most, but for as many calls as may wait.

        When many users return at once, more calls wait as well; none of theirs is rejected.
        """
        surplus, calls = set(), 0
        rejected = [one for one in self._unauthenticated() if one.peer in self._rejected]
        for one in sorted(rejected, key=lambda one: one.received):
            calls += one.received // CALL_BYTES
            if calls > self._max_waiting:
                surplus.add(one.peer)
        return surplus

    def _unauthenticated(self) -> list[_Connection]:
        return [one for one in self._open.values() if one and one.peer not in self._authenticated]

    def _close(self, peers: Collection[str]) -> None:
        for descriptor in [descriptor for descriptor, one in self._open.items() if one and one.peer in peers]:
            with suppress(OSError):
                # gRPC may close it meanwhile, and another file may get its number: the copy stays what it is.
                copy = socket.socket(fileno=os.dup(descriptor))
                if _inspect(copy.fileno(), self._port)[0] in peers:
                    copy.shutdown(socket.SHUT_RDWR)
                    self._count += 1
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


def _inspect(descriptor: int, port: int) -> tuple[str | None, int]:
    """Returns the peer of a connection to a port, as gRPC writes it, and how many bytes came from there.

    The peer is None if the descriptor is something else.
    """
    try:
        one = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, descriptor)
    except OSError:
        return None, 0
    try:
        if one.getsockname()[1:2] != (port,):
            return None, 0
        return _format(*one.getpeername()), _received(one)
    except OSError:
        return None, 0
    finally:
        one.detach()


def _received(one: socket.socket) -> int:
    """Returns how many bytes a connection has received; 0 where the system does not tell."""
    if TCP_INFO is None:
        return 0
    end = TCP_INFO_BYTES_RECEIVED + 8
    return int.from_bytes(one.getsockopt(socket.IPPROTO_TCP, TCP_INFO, end)[TCP_INFO_BYTES_RECEIVED:], sys.byteorder)


def _format(host: str, port: int, _flow: int = 0, _scope: int = 0) -> str:
    plain = host.removeprefix("::ffff:")
    if ":" not in plain:
        return f"ipv4:{plain}:{port}"
    return f"ipv6:{quote(f'[{host}]', safe=':')}:{port}"
