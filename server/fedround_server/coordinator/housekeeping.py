"""What the server does from time to time: reconcile rounds, collect blobs, keep last-seen times."""

import logging
from datetime import timedelta

from fedround_server.coordinator.absences import INTERVAL as ABSENCES_INTERVAL
from fedround_server.coordinator.absences import Absences
from fedround_server.coordinator.collection import Collection
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.openings import INTERVAL as OPENINGS_INTERVAL
from fedround_server.coordinator.openings import Openings
from fedround_server.coordinator.outages import level_of
from fedround_server.coordinator.round import Rounds
from fedround_server.domain.errors import BackupInProgress, Unavailable

log = logging.getLogger(__name__)
RECONCILIATION_INTERVAL = timedelta(seconds=5)
SHARED_INTERVAL = timedelta(seconds=1)
"""The same while there are other replicas, which may open rounds, and end."""
COLLECTION_INTERVAL = timedelta(hours=1)
LAST_SEEN_INTERVAL = timedelta(seconds=50)
LAST_SEEN_USERS = 1000
"""How many last-seen times are written in one transaction; the store does other work between two."""


class Housekeeping:
    """The periodic work of a server. Each part goes on after an error of the database or the disk."""

    def __init__(self, context: Context, rounds: Rounds, collection: Collection) -> None:
        """Creates it; `start` begins the work."""
        self._context = context
        self._rounds = rounds
        self._collection = collection

    def start(self) -> None:
        """Starts the background tasks."""
        start = self._context.background.create_task
        start(self._reconcile_forever(), name="reconcile rounds")
        absences, openings = self._rounds.absences, self._rounds.openings
        start(self._look_forever(absences, ABSENCES_INTERVAL), name="look for absent participants")
        start(self._look_forever(openings, OPENINGS_INTERVAL), name="open pending rounds")
        start(self._collect_forever(), name="collect blobs")
        start(self._keep_last_seen_forever(), name="keep last-seen times")

    async def keep_last_seen(self) -> None:
        """Writes the last-seen times that changed since the last call."""
        changed = list(self._context.presence.take_news(self._context.clock.now()).items())
        try:
            while changed:
                await self._context.store.users.record_last_seen(dict(changed[:LAST_SEEN_USERS]))
                del changed[:LAST_SEEN_USERS]
        except Unavailable as error:
            self._context.presence.give_back(user_id for user_id, _ in changed)
            log.log(level_of(error), "keeping last-seen times: %s", error)

    async def _reconcile_forever(self) -> None:
        while True:
            await self._context.clock.sleep(SHARED_INTERVAL if self._context.peers.others else RECONCILIATION_INTERVAL)
            try:
                await self._context.store.hold()
                await self._rounds.reconcile()
            except Unavailable as error:
                log.log(level_of(error), "reconciling rounds: %s", error)

    async def _look_forever(self, rounds: Absences | Openings, interval: timedelta) -> None:
        while True:
            await self._context.clock.sleep(interval)
            for training_id in rounds.watched():
                try:
                    await rounds.look(training_id)
                except Unavailable as error:
                    log.log(level_of(error), "looking at the round of training %s: %s", training_id, error)
                    # Nor will the others get an answer now.
                    break

    async def _keep_last_seen_forever(self) -> None:
        while True:
            await self._context.clock.sleep(LAST_SEEN_INTERVAL)
            await self.keep_last_seen()

    async def _collect_forever(self) -> None:
        while True:
            try:
                # One of all replicas is enough for the blobs, and two do no harm.
                if self._context.peers.is_first:
                    await self._collection.collect()
                else:
                    await self._collection.collect_uploads()
            except (Unavailable, OSError, BackupInProgress) as error:
                log.warning("collecting files: %s", error)
            await self._context.clock.sleep(COLLECTION_INTERVAL)
