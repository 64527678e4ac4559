"""All use cases together."""

from fedround_server.coordinator.access import Access
from fedround_server.coordinator.audit import Audit
from fedround_server.coordinator.check_in import CheckIns
from fedround_server.coordinator.collection import Collection
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.control import Control
from fedround_server.coordinator.file_recovery import recover_files
from fedround_server.coordinator.housekeeping import Housekeeping
from fedround_server.coordinator.inference import Inference
from fedround_server.coordinator.inline_models import InlineModels
from fedround_server.coordinator.model import Models
from fedround_server.coordinator.privacy import PrivacyAccounting
from fedround_server.coordinator.reads import Reads
from fedround_server.coordinator.rejected_updates import RejectedUpdates
from fedround_server.coordinator.replay import Replays
from fedround_server.coordinator.replicas import Replicas
from fedround_server.coordinator.round import Rounds
from fedround_server.coordinator.round_status import RoundStatus
from fedround_server.coordinator.server_status import StatusReader
from fedround_server.coordinator.stored_files import StoredFiles
from fedround_server.coordinator.submission import Submissions
from fedround_server.coordinator.subscription import Subscriptions
from fedround_server.coordinator.tasks import in_thread
from fedround_server.coordinator.training import Trainings
from fedround_server.coordinator.uploads.receive import Uploads
from fedround_server.coordinator.user import Users
from fedround_server.failpoints import reached


class Coordinator:
    """The use cases of a server, by noun, and its life cycle."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.reads = Reads(context.store)
        self.uploads = Uploads(context)
        self.access = Access(context)
        self.users = Users(context, self.access)
        files = StoredFiles(context)
        self.models = Models(context, self.uploads, files)
        self.inline_models = InlineModels(context, self.models)
        self.rounds = Rounds(context, self.uploads, files)
        self.submissions = Submissions(context, self.uploads, self.rounds.aggregations, self.rounds.next_rounds)
        self.rejected_updates = RejectedUpdates(context)
        self.round_status = RoundStatus(context, self.uploads.progress, self.rounds.aggregations)
        self.privacy = PrivacyAccounting(context)
        self.trainings = Trainings(context, self.uploads, self.rounds, self.privacy)
        self.control = Control(context, self.rounds)
        self.subscriptions = Subscriptions(context)
        self.check_ins = CheckIns(context)
        self.inference = Inference(context)
        self.audit = Audit(context)
        self.replays = Replays(context, self.uploads.space)
        self.status = StatusReader(context, self.uploads.space)
        self.collection = Collection(context, self.uploads)
        self.replicas = Replicas(context, self.access, self.subscriptions.feeds, self.rounds, self.uploads.progress)
        self._housekeeping = Housekeeping(context, self.rounds, self.collection)

    async def recover(self) -> None:
        """Takes up what an earlier process left, and starts the background work; to be called before serving."""
        await self.audit.start()
        await in_thread(self._context.blobs.sweep)
        reached("start.swept")
        await recover_files(self._context)
        reached("start.settled")
        await in_thread(self._context.blobs.measure)
        await in_thread(self.uploads.space.recover)
        await self.rounds.recover()
        reached("start.recovered")
        self._housekeeping.start()

    async def remove_user(self, user_id: str, *, force: bool, remove_models: bool = False) -> None:
        """Removes a user with the trainings that it steers, and goes on with those in which it took part.

        Raises:
            FedroundError: As described for `Users.remove`.
        """
        await self._context.tasks.run_shielded(self._remove_user(user_id, force, remove_models))

    def start_draining(self) -> None:
        """Stops opening and closing rounds, and ends every subscription with a message that the server goes away."""
        self.rounds.stop()
        self.subscriptions.close()

    async def close(self) -> None:
        """Waits for shielded work, writes last-seen times, and ends the audit log; to be called after serving."""
        await self._context.tasks.drain()
        await self._housekeeping.keep_last_seen()
        await self.audit.stop()

    async def _remove_user(self, user_id: str, force: bool, remove_models: bool) -> None:
        for training_id in await self.users.remove(user_id, force=force, remove_models=remove_models):
            await self.rounds.follow_up(training_id)
        # Last: it may take long, and nothing depends on it.
        await self.uploads.end(user_id)
