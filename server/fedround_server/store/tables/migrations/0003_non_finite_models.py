"""Whether a model has neither NaN nor Inf: all models of earlier versions are finite."""

from typing import Any


def up(_migrator: Any, db: Any) -> None:
    """Adds the column `is_finite` to the table of models."""
    kind = "BOOLEAN" if db.for_update else "INTEGER"
    db.execute_sql(f"ALTER TABLE model ADD COLUMN is_finite {kind} NOT NULL DEFAULT TRUE")
    if db.for_update:
        # SQLite cannot drop a default, and nothing depends on it.
        db.execute_sql("ALTER TABLE model ALTER COLUMN is_finite DROP DEFAULT")
