"""Reads that need nothing but the store: services call them without a use case in between."""

from fedround_server.domain.user import User
from fedround_server.store import Store


class Reads:
    """The store's read-only verbs for services, which may not import the store."""

    def __init__(self, store: Store) -> None:
        """Selects the verbs; each documents its arguments, result and errors."""
        self._viewers = store.viewers
        self.training = store.trainings.get
        self.trainings = store.trainings.page
        self.all_trainings = store.viewers.page_trainings
        self.assigned_model = store.rounds.assigned
        self.control_variate = store.rounds.control_variate
        self.model = store.models.get
        self.models = store.models.page
        self.model_versions = store.models.page_versions
        self.metrics = store.models.metrics
        self.users = store.users.page
        self.origin = store.audit.origin

    async def reader_of_training(self, caller: User, training_id: str) -> str:
        """Returns as whom a caller reads a training: a viewer as its actor.

        Raises:
            TrainingNotFound: The caller is a viewer, and there is no such training.
        """
        return caller.reads_as(await self._viewers.actor_of(training_id)) if caller.is_viewer else caller.user_id

    async def reader_of_model(self, caller: User, model_id: str) -> str:
        """Returns as whom a caller reads a model: a viewer as its owner, if a training works or worked on it.

        Raises:
            ModelNotFound: The caller is a viewer, and there is no such model.
        """
        return caller.reads_as(await self._viewers.owner_of(model_id)) if caller.is_viewer else caller.user_id
