"""All use cases together."""

import logging
from datetime import timedelta

from fedround_server.coordinator.audit import Audit
from fedround_server.coordinator.context import Context, in_thread, run_shielded, settle
from fedround_server.coordinator.inference import Inference
from fedround_server.coordinator.model import Models
from fedround_server.coordinator.rejected_updates import RejectedUpdates
from fedround_server.coordinator.round import Rounds
from fedround_server.coordinator.subscription import Subscriptions
from fedround_server.coordinator.training import Trainings
from fedround_server.coordinator.uploads.receive import Uploads
from fedround_server.coordinator.user import Users
from fedround_server.domain.errors import Unavailable
from fedround_server.failpoints import reached

log = logging.getLogger(__name__)
RECONCILIATION_INTERVAL = timedelta(seconds=5)
COLLECTION_INTERVAL = timedelta(hours=1)
# The store answers other questions between two slices.
COLLECTION_SLICE = 500
SIGHTING_INTERVAL = timedelta(seconds=50)


class Coordinator:
    """What the server can do, by noun."""

    def __init__(self, context: Context) -> None:
        """Joins the use cases over one context."""
        self._context = context
        self.uploads = Uploads(context)
        self.users = Users(context)
        self.models = Models(context, self.uploads)
        self.rounds = Rounds(context, self.uploads)
        self.refusals = RejectedUpdates(context)
        self.trainings = Trainings(context, self.uploads, self.rounds)
        self.subscriptions = Subscriptions(context)
        self.inference = Inference(context)
        self.audit = Audit(context)

    async def recover(self) -> None:
        """Takes up what an earlier process left, and begins what goes on by itself; before serving."""
        await self.audit.start()
        await in_thread(self._context.blobs.sweep)
        reached("start.swept")
        await in_thread(self._context.blobs.measure)
        await self.uploads.recover()
        await self.rounds.recover()
        reached("start.recovered")
        self._context.tasks.create_task(self._reconcile(), name="reconcile rounds")
        self._context.tasks.create_task(self._collect(), name="collect blobs")
        self._context.tasks.create_task(self._watch(), name="keep sightings")

    async def remove_user(self, user_id: str, *, force: bool) -> None:
        """Removes a user with the trainings that it steers, and goes on with those that it left.

        Raises:
            UserNotFound: There is no such user.
            LastAdmin: Nobody would be left to manage users.
            TrainingRunning: It steers running trainings, and force is not set.
        """
        await run_shielded(self._remove_user(user_id, force))

    def leave(self) -> None:
        """Opens and closes no rounds any more, and has every subscription say goodbye."""
        self.rounds.leave()
        self.subscriptions.close()

    async def close(self) -> None:
        """Waits for work that must not stop half way, keeps who was seen, and has the audit log say the last word."""
        await settle()
        await self._keep_sightings()
        await self.audit.stop()

    async def _remove_user(self, user_id: str, force: bool) -> None:
        for training_id in await self.users.remove(user_id, force=force):
            await self.rounds.follow_up(training_id)
        # Last: it takes its time, and nothing depends on it.
        await self.uploads.end(user_id)

    async def _reconcile(self) -> None:
        while True:
            await self._context.clock.sleep(RECONCILIATION_INTERVAL)
            try:
                await self._context.store.hold()
                await self.rounds.reconcile()
            except Unavailable as error:
                log.warning("looking for rounds that were left behind: %s", error)

    async def _watch(self) -> None:
        while True:
            await self._context.clock.sleep(SIGHTING_INTERVAL)
            await self._keep_sightings()

    async def _keep_sightings(self) -> None:
        news = self._context.presence.take_news(self._context.clock.now())
        try:
            await self._context.store.users.record_last_seen(news)
        except Unavailable as error:
            self._context.presence.give_back(news)
            log.warning("keeping when users were seen: %s", error)

    async def _collect(self) -> None:
        while True:
            try:
                await self._collect_once()
            except (Unavailable, OSError) as error:
                log.warning("collecting files: %s", error)
            await self._context.clock.sleep(COLLECTION_INTERVAL)

    async def _collect_once(self) -> None:
        blobs = self._context.blobs
        old = await in_thread(blobs.old)
        for start in range(0, len(old), COLLECTION_SLICE):
            some = old[start : start + COLLECTION_SLICE]
            # A digest without a row gets one only with an upload, which touches the blob.
            needed = await self._context.store.models.digests_in_use(some)
            await in_thread(blobs.collect, set(some) - needed)
        await self.uploads.collect()
