"""Checks of the quotas of users. Each runs in the transaction of a verb that has locked the user."""

from peewee import fn

from fedround_server.domain.errors import Quota
from fedround_server.domain.limits import Quotas
from fedround_server.domain.training import TrainingState
from fedround_server.store.tables.schema import ModelRow, TrainingRow

OPEN = [state.value for state in TrainingState if not state.is_ended]


def check_open_trainings(actor_id: str, quotas: Quotas) -> None:
    """Makes sure that an actor may create another training.

    Raises:
        Quota: The actor, or all actors together, have too many trainings that have not ended.
    """
    unfinished = TrainingRow.select().where(TrainingRow.remove_time.is_null(), TrainingRow.state.in_(OPEN))
    own = unfinished.where(TrainingRow.actor_id == actor_id).count()
    if own >= quotas.max_open_trainings_per_user:
        raise Quota(
            f"you have {own} trainings that have not ended, and the limit is {quotas.max_open_trainings_per_user}:"
            " remove some first",
            limit="max_open_trainings_per_user",
        )
    # Actors do not lock each other: several that create at the same time may all take the last place.
    if unfinished.count() >= quotas.max_open_trainings:
        raise Quota(
            f"the server has {quotas.max_open_trainings} trainings that have not ended, its limit: remove some first,"
            " or ask the operator for more",
            limit="max_open_trainings",
        )


def check_stored_bytes(user_id: str, quotas: Quotas, more: int = 0) -> None:
    """Makes sure that a user may store more bytes.

    Raises:
        Quota: The files of the user would exceed the quota.
    """
    stored = stored_bytes(user_id) + more
    if stored > quotas.max_stored_bytes_per_user:
        raise Quota(
            f"your files would have {stored} bytes, you may have {quotas.max_stored_bytes_per_user}: remove models, or"
            " trainings with their updates, first",
            limit="max_stored_bytes_per_user",
        )


def stored_bytes(user_id: str) -> int:
    """Returns the size in bytes of the files of a user's models and trainings; a file of two of them counts twice.

    Each model and training has a column with the size of its files, since adding up the files would take seconds.
    """
    models = ModelRow.select(fn.COALESCE(fn.SUM(ModelRow.stored_bytes), 0)).where(
        ModelRow.owner_id == user_id, ModelRow.remove_time.is_null()
    )
    trainings = TrainingRow.select(fn.COALESCE(fn.SUM(TrainingRow.stored_bytes), 0)).where(
        TrainingRow.actor_id == user_id, TrainingRow.remove_time.is_null()
    )
    return int(models.scalar()) + int(trainings.scalar())
