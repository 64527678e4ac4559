"""Logs an outage of PostgreSQL once, and its end."""

import logging
import threading
from collections.abc import Callable

from fedround_server.store.db.lease import elapsed

log = logging.getLogger(__name__)
LONG_SECONDS = 3.0
"""From which length on the end of an outage is logged: single errors are common."""


class Outage:
    """Whether the database answers. Any thread may use it."""

    def __init__(self, clock: Callable[[], float] = elapsed) -> None:
        """Supposes that the database answers."""
        self._clock = clock
        self._lock = threading.Lock()
        # Since when no transaction was committed; None if the last one was.
        self._since: float | None = None

    def failed(self, problem: str) -> None:
        """Logs why the database does not answer, unless that is known."""
        with self._lock:
            is_news = self._since is None
            if is_news:
                self._since = self._clock()
        log.log(logging.WARNING if is_news else logging.DEBUG, "the database does not answer: %s", problem)

    def answered(self) -> None:
        """Logs the end of an outage, if there was one."""
        if self._since is None:
            return
        with self._lock:
            since, self._since = self._since, None
        if since is not None and (seconds := self._clock() - since) >= LONG_SECONDS:
            log.warning("the database answers again, after %.0f s", seconds)


outage = Outage()
"""That of the PostgreSQL database of this process, which has one open at a time."""
