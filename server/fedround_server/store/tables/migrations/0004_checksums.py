"""Checksums of the blocks of files; those of files that are stored already are unknown."""

from typing import Any

TABLES = ("model_version", "artifact", "round_update", "assignment")


def up(_migrator: Any, db: Any) -> None:
    """Adds the columns, and an index to find every row that refers to a file."""
    kind = "BYTEA" if db.for_update else "BLOB"
    for table in TABLES:
        db.execute_sql(f"ALTER TABLE {table} ADD COLUMN checksums {kind}")
    db.execute_sql('CREATE INDEX "assignment_sha256" ON "assignment" ("sha256")')
