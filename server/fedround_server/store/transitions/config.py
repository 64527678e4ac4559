"""Changes of the configuration of a training."""

from collections.abc import Mapping

from fedround_server.domain.config import Config
from fedround_server.store.tables.base import BATCH_ROWS
from fedround_server.store.tables.config import from_config
from fedround_server.store.tables.control_schema import ClientConfigRow, TrainingConfigRow


def put_config(training_id: str, from_round: int, config: Config | None, client_config: Mapping[str, Config]) -> None:
    """Stores a configuration from a round on, in place of one that was stored from the same round on.

    Args:
        training_id: The training.
        from_round: The first round with it, which is not open yet.
        config: What all participants get; None if that does not change.
        client_config: What some participants get on top of that; the others keep what they have.
    """
    if config is not None:
        TrainingConfigRow.insert(
            training_id=training_id, from_round=from_round, config=from_config(config)
        ).on_conflict(
            conflict_target=[TrainingConfigRow.training_id, TrainingConfigRow.from_round],
            preserve=[TrainingConfigRow.config],
        ).execute()
    rows = [
        {"training_id": training_id, "user_id": user_id, "from_round": from_round, "config": from_config(own)}
        for user_id, own in sorted(client_config.items())
    ]
    for start in range(0, len(rows), BATCH_ROWS):
        ClientConfigRow.insert_many(rows[start : start + BATCH_ROWS]).on_conflict(
            conflict_target=[ClientConfigRow.training_id, ClientConfigRow.user_id, ClientConfigRow.from_round],
            preserve=[ClientConfigRow.config],
        ).execute()
