"""Artifacts of versions, the names of missing participants, deadlines as instants, and tables by their terms."""

import json
from collections.abc import Callable
from typing import Any

from peewee import BigIntegerField, CharField, CompositeKey, IntegerField, Model, TextField

MISSING = "; missing: "
MICROSECONDS = 1_000_000


def up(_migrator: Any, db: Any) -> None:
    """Migrates a database of 0.1.0."""

    class Artifact(Model):
        model_id = CharField(max_length=36)
        version = IntegerField()
        kind = CharField(max_length=32)
        sha256 = CharField(max_length=64, index=True)
        size_bytes = BigIntegerField()
        details = TextField()

        class Meta:
            table_name = "artifact"
            primary_key = CompositeKey("model_id", "version", "kind")

    db.bind([Artifact])
    db.create_tables([Artifact])
    db.execute_sql(
        "INSERT INTO artifact (model_id, version, kind, sha256, size_bytes, details)"
        " SELECT model_id, version, 'posterior', posterior_sha256, posterior_size_bytes,"
        " '{\"rank\":' || CAST(posterior_rank AS VARCHAR(10)) || '}'"
        " FROM model_version WHERE posterior_sha256 IS NOT NULL"
    )
    for index in db.get_indexes("model_version"):
        if index.columns == ["posterior_sha256"]:
            db.execute_sql(f'DROP INDEX "{index.name}"')
    for column in ("posterior_sha256", "posterior_size_bytes", "posterior_rank"):
        db.execute_sql(f"ALTER TABLE model_version DROP COLUMN {column}")
    for old, new in (("deal", "assignment"), ("refusal", "rejected_update"), ("sighting", "last_seen")):
        db.execute_sql(f"ALTER TABLE {old} RENAME TO {new}")
    db.execute_sql("ALTER TABLE training ADD COLUMN failure_missing TEXT NOT NULL DEFAULT '[]'")
    if db.for_update:
        # SQLite cannot drop a default, and nothing depends on it.
        db.execute_sql("ALTER TABLE training ALTER COLUMN failure_missing DROP DEFAULT")
    run = _Statements(db)
    _name_the_missing(run)
    run(
        "UPDATE round SET kind = 'CHAINED' WHERE kind = 'TRAIN' AND training_id IN"
        " (SELECT training_id FROM training WHERE spec LIKE ?)",
        '%"algorithm":"fed_dc"%',
    )
    _change_payloads(run, "RoundStarted", _change_round_started)
    _change_payloads(run, "RoundExtended", _change_deadline)


class _Statements:
    """Runs statements with ? for their parameters, as SQLite writes them."""

    def __init__(self, db: Any) -> None:
        self._db = db

    def __call__(self, sql: str, *values: Any) -> Any:
        return self._db.execute_sql(sql.replace("?", self._db.param), values)


def _name_the_missing(run: _Statements) -> None:
    """Moves the names of missing participants out of the message that all participants may read."""
    failed = run("SELECT training_id, failure_message FROM training WHERE failure_message IS NOT NULL")
    for training_id, message in failed.fetchall():
        public, separator, names = message.partition(MISSING)
        if separator:
            missing = json.dumps(names.split(", "), separators=(",", ":"))
            run(
                "UPDATE training SET failure_message = ?, failure_missing = ? WHERE training_id = ?",
                *(public, missing, training_id),
            )


def _change_payloads(run: _Statements, kind: str, change: Callable[[dict[str, Any]], None]) -> None:
    # One training at a time: the log of a long one has thousands of events.
    for (training_id,) in run("SELECT training_id FROM training").fetchall():
        rows = run("SELECT sequence, payload FROM event WHERE training_id = ? AND kind = ?", training_id, kind)
        for sequence, text in rows.fetchall():
            payload = json.loads(text)
            change(payload)
            changed = json.dumps(payload, sort_keys=True, allow_nan=False, separators=(",", ":"))
            run("UPDATE event SET payload = ? WHERE training_id = ? AND sequence = ?", changed, training_id, sequence)


def _change_round_started(payload: dict[str, Any]) -> None:
    payload["assigned"] = payload.pop("dealt", False)
    _change_deadline(payload)


def _change_deadline(payload: dict[str, Any]) -> None:
    if payload.get("deadline") is not None:
        payload["deadline"] = round(payload["deadline"] * MICROSECONDS)
