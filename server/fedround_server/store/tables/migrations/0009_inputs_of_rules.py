"""What rules of aggregation need to know of updates."""

from typing import Any


def up(_migrator: Any, db: Any) -> None:
    """Migrates a database whose rules needed nothing but example counts."""
    whole, number = ("BIGINT", "DOUBLE PRECISION") if db.for_update else ("INTEGER", "REAL")
    db.execute_sql(f"ALTER TABLE round_update ADD COLUMN local_steps {whole}")
    db.execute_sql(f"ALTER TABLE round_update ADD COLUMN initial_loss {number}")
