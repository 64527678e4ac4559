"""An audit chain for each training, and one for the server."""

from typing import Any

from peewee import BigIntegerField, CharField, CompositeKey, Model, TextField


def up(_migrator: Any, db: Any) -> None:
    """Migrates a database whose audit log is one chain: it becomes the server's.

    Its entries stay as they are. The chain of a training begins with the first change after the migration.
    """
    (head,) = db.execute_sql("SELECT sequence, hash FROM audit_head").fetchall()
    db.execute_sql("DROP TABLE audit_head")

    class AuditHead(Model):
        chain = CharField(max_length=36, primary_key=True)
        sequence = BigIntegerField()
        hash = CharField(max_length=64)
        start = BigIntegerField()

        class Meta:
            table_name = "audit_head"

    class RecordedHead(Model):
        chain = CharField(max_length=36, primary_key=True)
        sequence = BigIntegerField()

        class Meta:
            table_name = "audit_recorded_head"

    db.bind([AuditHead, RecordedHead])
    db.create_tables([AuditHead, RecordedHead])
    AuditHead.insert(chain="", sequence=head[0], hash=head[1], start=0).execute()
    if db.for_update:
        db.execute_sql("ALTER TABLE audit ADD COLUMN chain VARCHAR(36) NOT NULL DEFAULT ''")
        db.execute_sql("ALTER TABLE audit ALTER COLUMN chain DROP DEFAULT")
        db.execute_sql("ALTER TABLE audit DROP CONSTRAINT audit_pkey")
        db.execute_sql("ALTER TABLE audit ADD PRIMARY KEY (chain, sequence)")
    else:
        _copy(db)


def _copy(db: Any) -> None:
    """Copies the entries into a table with another primary key: SQLite cannot change that of a table."""

    class Audit(Model):
        chain = CharField(max_length=36)
        sequence = BigIntegerField()
        time = BigIntegerField()
        user_id = CharField(max_length=36)
        action = CharField(max_length=32)
        training_id = CharField(max_length=36)
        model_id = CharField(max_length=36)
        subject = CharField(max_length=64)
        facts = TextField()
        previous_hash = CharField(max_length=64)
        hash = CharField(max_length=64)

        class Meta:
            table_name = "audit"
            primary_key = CompositeKey("chain", "sequence")

    columns = "sequence, time, user_id, action, training_id, model_id, subject, facts, previous_hash, hash"
    db.execute_sql("ALTER TABLE audit RENAME TO audit_before")
    for index in db.get_indexes("audit_before"):
        if index.sql:
            db.execute_sql(f'DROP INDEX "{index.name}"')
    db.bind([Audit])
    Audit.create_table(safe=False)
    db.execute_sql(f"INSERT INTO audit (chain, {columns}) SELECT '', {columns} FROM audit_before ORDER BY sequence")  # noqa: S608 -- names of columns
    db.execute_sql("DROP TABLE audit_before")
    # An index that is built at the end is sorted once: 200,000 entries take a fifth of the CPU time.
    for column in ("training_id", "model_id"):
        db.execute_sql(f'CREATE INDEX "audit_{column}_action_subject" ON "audit" ("{column}", "action", "subject")')
