"""Use cases about trainings."""

from collections.abc import Sequence
from functools import partial

from fedround_server.coordinator.context import Context
from fedround_server.coordinator.privacy import PrivacyAccounting
from fedround_server.coordinator.round import Rounds
from fedround_server.coordinator.uploads.receive import Incoming, Received, Uploads
from fedround_server.domain.model import NewModel
from fedround_server.domain.rounds import check_model
from fedround_server.domain.training import Training, TrainingSpec
from fedround_server.wakeups import NEW_TRAINING, for_actor


class Trainings:
    """Creates and steers trainings. Changes raise the errors of the verbs of the same name in `TrainingVerbs`."""

    def __init__(self, context: Context, uploads: Uploads, rounds: Rounds, privacy: PrivacyAccounting) -> None:
        self._context = context
        self._store = context.store.trainings
        self._uploads = uploads
        self._rounds = rounds
        self._privacy = privacy

    async def create(self, actor_id: str, spec: TrainingSpec, incoming: Incoming | None) -> Training:
        """Creates a training with its model, the stored or the incoming one, and its participants, or nothing at all.

        Returns:
            The training; that of an earlier call with the same request id, if there was one.

        Raises:
            UnknownClients: Some of the client_ids belong to no user.
            ModelNotFound: The actor owns no such model.
            Quota: The actor has too many trainings or too many bytes of files.
            DiskFull: The disk is almost full.
            AccountingMissing: The server cannot account for differential privacy.
            FedroundError: The file is rejected, as described for `Uploads.receive`.
        """
        size = 0 if incoming is None else incoming.size_bytes or 0
        made = await self._store.prepare(actor_id, spec, self._context.limits, size)
        if made is not None:
            return made
        allowed = await self._privacy.rounds_allowed(spec)
        if incoming is None:
            self._uploads.space.check_new()
            training, _ = await self._context.tasks.run_shielded(self._create(actor_id, spec, None, allowed))
            return training

        async def create(received: Received) -> tuple[Training, bool]:
            blob, manifest, is_finite = received.blob, received.manifest, received.is_finite
            model = NewModel(spec.name, spec.description, manifest, blob, spec.architecture, is_finite=is_finite)
            return await self._create(actor_id, spec, model, allowed)

        check = partial(check_model, spec)
        return await self._uploads.receive(incoming, check, create, allow_non_finite=spec.allow_non_finite_buffers)

    async def register(self, training_id: str, actor_id: str, client_ids: Sequence[str]) -> Training:
        """Registers clients as participants."""
        return await self._context.tasks.run_shielded(self._register(training_id, actor_id, client_ids))

    async def remove_clients(self, training_id: str, caller_id: str, client_ids: Sequence[str]) -> Training:
        """Removes participants; the policy of the open round is evaluated at once for those who stay."""
        return await self._context.tasks.run_shielded(self._remove_clients(training_id, caller_id, client_ids))

    async def remove(self, training_id: str, actor_id: str, *, force: bool) -> None:
        """Removes a training; its model stays."""
        await self._context.tasks.run_shielded(self._remove(training_id, actor_id, force))

    async def start(self, training_id: str, actor_id: str, request_id: str | None) -> Training:
        """Starts a training, which opens its first round."""
        return await self._context.tasks.run_shielded(self._start(training_id, actor_id, request_id))

    async def _create(
        self, actor_id: str, spec: TrainingSpec, model: NewModel | None, rounds_allowed: int | None
    ) -> tuple[Training, bool]:
        """Returns the training, and whether it is a new one."""
        training_id, model_id = self._context.new_id(), self._context.new_id()
        limits, now = self._context.limits, self._context.clock.now()
        shadow_ids = [self._context.new_id() for _ in spec.aggregation.shadows]
        training = await self._store.create(
            training_id, actor_id, spec, model, model_id, limits, now, shadow_ids, rounds_allowed
        )
        self._context.hub.notify(actor_id, *training.participant_ids, NEW_TRAINING)
        return training, training.training_id == training_id

    async def _register(self, training_id: str, actor_id: str, client_ids: Sequence[str]) -> Training:
        training = await self._store.register(training_id, actor_id, client_ids, self._context.clock.now())
        self._context.hub.notify(for_actor(training_id), *client_ids)
        if training.spec.cohort is not None:
            # A pending round counts their connections, too.
            await self._rounds.follow_up(training_id)
        return training

    async def _remove_clients(self, training_id: str, caller_id: str, client_ids: Sequence[str]) -> Training:
        now = self._context.clock.now()
        training, closed = await self._store.remove_clients(training_id, caller_id, client_ids, now)
        self._context.hub.notify(training_id, *client_ids)
        if closed:
            self._rounds.aggregations.start(training_id)
        else:
            # If the whole cohort left, the next round is open for the participants who stay.
            await self._rounds.follow_up(training_id)
        return training

    async def _remove(self, training_id: str, actor_id: str, force: bool) -> None:
        await self._store.remove(training_id, actor_id, force=force, now=self._context.clock.now())
        self._rounds.forget(training_id)
        self._context.hub.notify(training_id)

    async def _start(self, training_id: str, actor_id: str, request_id: str | None) -> Training:
        training = await self._store.start(training_id, actor_id, request_id, self._context.clock.now())
        self._context.hub.notify(training_id)
        await self._rounds.follow_up(training_id)
        return training
