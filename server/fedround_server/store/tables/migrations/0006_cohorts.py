"""Labels of users, cohorts that are drawn, and what became of the work of participants."""

from typing import Any

COLUMNS = (
    ("users", "labels", "TEXT NOT NULL DEFAULT '{}'"),
    ("participant", "rounds_left_out", "INTEGER NOT NULL DEFAULT 0"),
    ("participant", "failed", "BOOLEAN NOT NULL DEFAULT FALSE"),
    ("round", "needed", "INTEGER"),
    ("round", "eligible", "INTEGER"),
    ("round", "chosen", "INTEGER"),
    ("round", "wait_end", "BIGINT"),
)
FAILED = """
UPDATE participant SET failed = TRUE WHERE EXISTS (
    SELECT 1 FROM participant_failure JOIN training ON training.training_id = participant_failure.training_id
    WHERE participant_failure.training_id = participant.training_id
    AND participant_failure.user_id = participant.user_id AND participant_failure.number = training.round - 1
)
"""


def up(_migrator: Any, db: Any) -> None:
    """Migrates a database whose rounds asked all participants; the failures of the last rounds stay known."""
    for table, column, kind in COLUMNS:
        # SQLite has one type of integers, whatever it is called.
        stored = kind if db.for_update else kind.replace("BOOLEAN", "INTEGER").replace("BIGINT", "INTEGER")
        db.execute_sql(f"ALTER TABLE {table} ADD COLUMN {column} {stored}")
        if db.for_update and "DEFAULT" in kind:
            # SQLite cannot drop a default, and nothing depends on it.
            db.execute_sql(f"ALTER TABLE {table} ALTER COLUMN {column} DROP DEFAULT")
    db.execute_sql(FAILED)
    db.execute_sql('CREATE INDEX "participant_failed" ON "participant" ("training_id", "user_id") WHERE "failed"')
