"""Models of shadow aggregations, and which updates have a file that is stored."""

from typing import Any

from peewee import CharField, CompositeKey, IntegerField, Model


def up(_migrator: Any, db: Any) -> None:
    """Migrates a database that keeps the files of all updates."""

    class Shadow(Model):
        training_id = CharField(max_length=36)
        position = IntegerField()
        model_id = CharField(max_length=36, index=True)

        class Meta:
            table_name = "shadow"
            primary_key = CompositeKey("training_id", "position")

    db.bind([Shadow])
    db.create_tables([Shadow])
    kind = "BOOLEAN" if db.for_update else "INTEGER"
    db.execute_sql(f"ALTER TABLE round_update ADD COLUMN stored {kind} NOT NULL DEFAULT TRUE")
    if db.for_update:
        # SQLite cannot drop a default, and nothing depends on it.
        db.execute_sql("ALTER TABLE round_update ALTER COLUMN stored DROP DEFAULT")
    db.execute_sql("UPDATE round_update SET stored = FALSE WHERE sha256 IS NULL")
    db.execute_sql('CREATE INDEX "round_update_stored" ON "round_update" ("training_id", "number") WHERE "stored"')
