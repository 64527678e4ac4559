"""From which version an update was trained, in trainings with buffering."""

from typing import Any


def up(_migrator: Any, db: Any) -> None:
    """Migrates a database whose updates were all trained from the version that their round started from."""
    db.execute_sql("ALTER TABLE round_update ADD COLUMN base_version INTEGER")
    db.execute_sql(
        "CREATE INDEX round_update_training_id_user_id_base_version"
        " ON round_update (training_id, user_id, base_version)"
    )
