"""What the servers of one PostgreSQL database know of each other, and which of them aggregates a closed round."""

from typing import Any

from peewee import BigIntegerField, BooleanField, CharField, CompositeKey, IntegerField, Model, TextField


def up(_migrator: Any, db: Any) -> None:
    """Migrates a database that belongs to one server."""

    class Replica(Model):
        replica_id = CharField(max_length=36, primary_key=True)
        journal_id = CharField(max_length=36)
        name = CharField(max_length=100)
        version = CharField(max_length=50)
        schema_version = IntegerField()
        start_time = BigIntegerField()
        expire_time = BigIntegerField()
        presence_version = BigIntegerField()

        class Meta:
            table_name = "replica"

    class Presence(Model):
        replica_id = CharField(max_length=36)
        user_id = CharField(max_length=36)
        version = BigIntegerField()
        listening = BooleanField()
        seen_time = BigIntegerField(null=True)
        details = TextField()

        class Meta:
            table_name = "presence"
            primary_key = CompositeKey("replica_id", "user_id")
            indexes = ((("replica_id", "version"), False),)

    class ServerState(Model):
        id = IntegerField(primary_key=True)
        files_id = CharField(max_length=36)
        credential_changes = BigIntegerField()
        oldest_schema = IntegerField()

        class Meta:
            table_name = "server_state"

    class CredentialChange(Model):
        number = BigIntegerField(primary_key=True)
        user_id = CharField(max_length=36)

        class Meta:
            table_name = "credential_change"

    tables = [Replica, Presence, ServerState, CredentialChange]
    db.bind(tables)
    db.create_tables(tables)
    db.execute_sql("INSERT INTO server_state (id, files_id, credential_changes, oldest_schema) VALUES (1, '', 0, 17)")
    db.execute_sql("ALTER TABLE round ADD COLUMN keeper VARCHAR(36)")
    db.execute_sql('CREATE INDEX "participant_register_time" ON "participant" ("register_time")')
