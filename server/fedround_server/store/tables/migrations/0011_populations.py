"""How many participants a round could have asked when it was opened."""

from typing import Any


def up(_migrator: Any, db: Any) -> None:
    """Migrates a database whose rounds do not know it."""
    db.execute_sql("ALTER TABLE round ADD COLUMN population INTEGER")
