"""An index of the trainings of all users, which viewers list."""

from typing import Any


def up(_migrator: Any, db: Any) -> None:
    """Migrates a database without viewers."""
    db.execute_sql('CREATE INDEX "training_create_time_training_id" ON "training" ("create_time", "training_id")')
