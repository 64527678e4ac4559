"""Steps that hold users to their quotas; each runs inside a verb's transaction, behind `hold_user`."""

from peewee import fn

from fedround_server.domain.errors import Quota
from fedround_server.domain.quota import Quotas
from fedround_server.domain.training import TrainingState
from fedround_server.store.tables.schema import ModelRow, TrainingRow

OPEN = [state.value for state in TrainingState if not state.is_ended]


def check_open_trainings(actor_id: str, quotas: Quotas) -> None:
    """Makes sure that there may be another training.

    Raises:
        Quota: The actor, or all actors together, have too many that are not ended.
    """
    unfinished = TrainingRow.select().where(TrainingRow.remove_time.is_null(), TrainingRow.state.in_(OPEN))
    own = unfinished.where(TrainingRow.actor_id == actor_id).count()
    if own >= quotas.max_open_trainings_per_user:
        raise Quota(
            f"you have {own} trainings that have not ended, and the limit is {quotas.max_open_trainings_per_user}:"
            " remove some first",
            limit="max_open_trainings_per_user",
        )
    # Actors don't wait for each other: of those that create at the same instant, all may find the last place.
    if unfinished.count() >= quotas.max_open_trainings:
        raise Quota(
            f"the server has {quotas.max_open_trainings} trainings that have not ended, its limit: remove some first,"
            " or ask the operator for more",
            limit="max_open_trainings",
        )


def check_stored_bytes(user_id: str, quotas: Quotas, more: int = 0) -> None:
    """Makes sure that a user may store so many more bytes.

    Raises:
        Quota: Its files have too many.
    """
    stored = stored_bytes(user_id) + more
    if stored > quotas.max_stored_bytes_per_user:
        raise Quota(
            f"your files would have {stored} bytes, you may have {quotas.max_stored_bytes_per_user}: remove models, or"
            " trainings with their updates, first",
            limit="max_stored_bytes_per_user",
        )


def stored_bytes(user_id: str) -> int:
    """Returns how many bytes the files of a user's models and trainings have; one that two of them have counts twice.

    What is counted is kept with each model and training: looking at all files would take seconds.
    """
    models = ModelRow.select(fn.COALESCE(fn.SUM(ModelRow.stored_bytes), 0)).where(
        ModelRow.owner_id == user_id, ModelRow.remove_time.is_null()
    )
    trainings = TrainingRow.select(fn.COALESCE(fn.SUM(TrainingRow.stored_bytes), 0)).where(
        TrainingRow.actor_id == user_id, TrainingRow.remove_time.is_null()
    )
    return int(models.scalar()) + int(trainings.scalar())
