"""Keeps in memory whom credentials belong to, so that the calls of a known caller ask no database."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from fedround_server.domain.identity import Credentials, Identity

KEPT_SECONDS = 60.0
"""How long an identity is kept. It bounds how long a change that no process tells of goes unseen."""
MAX_KEPT = 1 << 16
"""How many identities are kept: those that were looked up last."""


class Identities:
    """Whom credentials belong to, from memory or from the database.

    What is kept is true because this process calls `forget_all` between the commit of a change that it makes and its
    answer, and when it learns of a change by another replica. It is not used while it cannot learn of any. Nothing here
    checks whether a token has expired: the time that it expires is a part of what is kept.
    """

    def __init__(
        self,
        look_up: Callable[[Credentials], Awaitable[Identity]],
        now: Callable[[], float] = time.monotonic,
        is_fresh: Callable[[], bool] = lambda: True,
    ) -> None:
        """Keeps nothing yet.

        Args:
            look_up: Asks the database whom credentials belong to.
            now: Returns the time in seconds, by a clock that is never set.
            is_fresh: Returns whether this process has learned of all changes, but for those of the last seconds.
        """
        self._look_up = look_up
        self._now = now
        self._is_fresh = is_fresh
        # With the time when each is forgotten, in the order of these.
        self._kept: OrderedDict[Credentials, tuple[Identity, float]] = OrderedDict()
        self._changes = 0

    async def find(self, credentials: Credentials) -> Identity:
        """Returns whom credentials belong to; looks again when a change comes while the database is asked."""
        kept = self._kept.get(credentials)
        if kept is not None and kept[1] > self._now() and self._is_fresh():
            return kept[0]
        while True:
            changes = self._changes
            identity = await self._look_up(credentials)
            if changes == self._changes:
                self._keep(credentials, identity)
                return identity

    def forget_all(self) -> None:
        """Forgets everything, also what is being looked up: credentials of some user have changed."""
        self._changes += 1
        self._kept.clear()

    def _keep(self, credentials: Credentials, identity: Identity) -> None:
        # Those of no user are not kept: their callers could fill the memory, and the rate of their calls is limited.
        if identity.owner is None and not identity.certified:
            return
        now = self._now()
        self._kept[credentials] = identity, now + KEPT_SECONDS
        self._kept.move_to_end(credentials)
        while len(self._kept) > MAX_KEPT or next(iter(self._kept.values()))[1] <= now:
            self._kept.popitem(last=False)
