"""What an actor does with a running training, and the configuration of rounds."""

from typing import Any

from peewee import CharField, CompositeKey, IntegerField, Model, TextField


def up(_migrator: Any, db: Any) -> None:
    """Migrates a database whose trainings are neither paused nor stopped, and have no configuration."""

    class TrainingConfig(Model):
        training_id = CharField(max_length=36)
        from_round = IntegerField()
        config = TextField()

        class Meta:
            table_name = "training_config"
            primary_key = CompositeKey("training_id", "from_round")

    class ClientConfig(Model):
        training_id = CharField(max_length=36)
        user_id = CharField(max_length=36)
        from_round = IntegerField()
        config = TextField()

        class Meta:
            table_name = "client_config"
            primary_key = CompositeKey("training_id", "user_id", "from_round")

    class ControlRequest(Model):
        training_id = CharField(max_length=36)
        request_id = CharField(max_length=36)
        action = CharField(max_length=32)

        class Meta:
            table_name = "control_request"
            primary_key = CompositeKey("training_id", "request_id")

    tables = [TrainingConfig, ClientConfig, ControlRequest]
    db.bind(tables)
    db.create_tables(tables)
    kind = "BOOLEAN" if db.for_update else "INTEGER"
    db.execute_sql(f"ALTER TABLE training ADD COLUMN paused {kind} NOT NULL DEFAULT FALSE")
    db.execute_sql("ALTER TABLE training ADD COLUMN stop VARCHAR(16)")
    if db.for_update:
        # SQLite cannot drop a default, and nothing depends on it.
        db.execute_sql("ALTER TABLE training ALTER COLUMN paused DROP DEFAULT")
