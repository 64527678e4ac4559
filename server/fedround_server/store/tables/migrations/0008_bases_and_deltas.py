"""Bases of models, and versions that are stored as deltas."""

from typing import Any

from peewee import BigIntegerField, BlobField, CharField, Model


def up(_migrator: Any, db: Any) -> None:
    """Migrates a database whose versions are whole files."""

    class ModelBase(Model):
        model_id = CharField(max_length=36, primary_key=True)
        sha256 = CharField(max_length=64, index=True)
        size_bytes = BigIntegerField()
        checksums = BlobField(null=True)

        class Meta:
            table_name = "model_base"

    db.bind([ModelBase])
    db.create_tables([ModelBase])
    db.execute_sql("ALTER TABLE model_version ADD COLUMN delta_sha256 VARCHAR(64)")
    size, bytes_ = ("BIGINT", "BYTEA") if db.for_update else ("INTEGER", "BLOB")
    db.execute_sql(f"ALTER TABLE model_version ADD COLUMN delta_size_bytes {size}")
    db.execute_sql(f"ALTER TABLE model_version ADD COLUMN delta_checksums {bytes_}")
    db.execute_sql('CREATE INDEX "model_version_delta_sha256" ON "model_version" ("delta_sha256")')
