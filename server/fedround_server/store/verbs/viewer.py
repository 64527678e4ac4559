"""Verbs for viewers, who read every training as its actor does."""

from collections.abc import Collection
from datetime import datetime

from fedround_server.domain.errors import ModelNotFound, TrainingNotFound
from fedround_server.domain.training import Training
from fedround_server.store.db.run import Verbs, snapshot, verb
from fedround_server.store.queries.log_view import LogView, find_actor_views, find_open_actor_views
from fedround_server.store.queries.model import find_owner_of_trained
from fedround_server.store.queries.training import load_trainings, page_all_trainings


class ViewerVerbs(Verbs):
    """Verbs for viewers. Each only reads."""

    @verb
    def actor_of(self, training_id: str) -> str:
        """Returns the actor of a training, also of one that is removed.

        Raises:
            TrainingNotFound: There is none.
        """
        for actor_id, _ in find_actor_views([training_id]):
            return actor_id
        raise TrainingNotFound(training_id)

    @verb
    def owner_of(self, model_id: str) -> str:
        """Returns the owner of a model that a training, or a shadow aggregation of one, works or worked on.

        Raises:
            ModelNotFound: There is none, or its training is removed.
        """
        owner_id = find_owner_of_trained(model_id)
        if owner_id is None:
            raise ModelNotFound(model_id)
        return owner_id

    @snapshot
    def page_trainings(self, before: tuple[datetime, str] | None, limit: int) -> list[Training]:
        """Returns the trainings of all users, the newest first, without their participants."""
        return load_trainings(page_all_trainings(before, limit), listed=True)

    @verb
    def views(self, training_ids: Collection[str]) -> list[tuple[str, LogView]]:
        """Returns the actors of trainings with their views, also of trainings that are removed.

        Raises:
            TrainingNotFound: One of them does not exist.
        """
        wanted = sorted(set(training_ids))
        found = {view.training_id: (actor_id, view) for actor_id, view in find_actor_views(wanted)}
        for training_id in wanted:
            if training_id not in found:
                raise TrainingNotFound(training_id)
        return [found[training_id] for training_id in wanted]

    @verb
    def open_views(self) -> list[tuple[str, LogView]]:
        """Returns the actors of all trainings that have not ended with their views."""
        return find_open_actor_views()
