"""Failures of participants, and how many of a round's members have failed."""

from typing import Any

from peewee import BigIntegerField, CharField, CompositeKey, IntegerField, Model, TextField


def up(_migrator: Any, db: Any) -> None:
    """Migrates a database without failures."""

    class ParticipantFailure(Model):
        training_id = CharField(max_length=36)
        number = IntegerField()
        user_id = CharField(max_length=36)
        reason = CharField(max_length=64)
        message = TextField()
        fail_time = BigIntegerField()

        class Meta:
            table_name = "participant_failure"
            primary_key = CompositeKey("training_id", "number", "user_id")

    db.bind([ParticipantFailure])
    db.create_tables([ParticipantFailure])
    db.execute_sql("ALTER TABLE round ADD COLUMN failed INTEGER NOT NULL DEFAULT 0")
    if db.for_update:
        # SQLite cannot drop a default, and nothing depends on it.
        db.execute_sql("ALTER TABLE round ALTER COLUMN failed DROP DEFAULT")
