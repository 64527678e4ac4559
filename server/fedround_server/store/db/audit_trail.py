"""The audit trail: what verbs record of their changes, appended to the audit log at the end of their transaction."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from peewee import ModelSelect

from fedround_server.domain.audit import AuditHead, AuditRecord, audit_chain
from fedround_server.store.db.compiled import compiled
from fedround_server.store.db.rows import insert, locked, save
from fedround_server.store.tables.base import BATCH_ROWS, Row
from fedround_server.store.tables.mapping import from_entry
from fedround_server.store.tables.schema import AuditHeadRow, AuditRow

_records: ContextVar[list[AuditRecord]] = ContextVar("records")


def record(
    action: str,
    about: Row | None = None,
    /,
    *,
    subject: object = "",
    notes: Mapping[str, Any] | None = None,
    **facts: Any,
) -> None:
    """Records a change of the running verb; it becomes an entry of the audit log if the verb commits.

    `about` is the row of the training, the round or the model that it is about; `AuditRecord` describes the rest.
    """
    training_id, model_id = getattr(about, "training_id", ""), getattr(about, "model_id", "")
    append(AuditRecord(action, training_id, model_id, str(subject), facts, notes or {}))


def append(one: AuditRecord) -> None:
    """Appends a record to those of the running verb."""
    _records.get().append(one)


@contextmanager
def recording(user_id: str, now: Callable[[], datetime]) -> Iterator[Sequence[AuditRecord]]:
    """Collects the records of a block, and writes them at its end; only the commit may follow in the transaction."""
    records: list[AuditRecord] = []
    reset = _records.set(records)
    try:
        yield records
    finally:
        _records.reset(reset)
    if records:
        _write(records, user_id, now)


def _write(records: Sequence[AuditRecord], user_id: str, now: Callable[[], datetime]) -> None:
    # The lock on the head makes every change wait for the commit of the one before it. A transaction that holds the
    # head waits for no other lock: so there is no deadlock, and no wait is longer than a commit.
    row = _head.one()
    entries = audit_chain(records, user_id, AuditHead(row.sequence, row.hash), now())
    if len(entries) == 1:
        insert(AuditRow(**from_entry(entries[0])))
    else:
        for start in range(0, len(entries), BATCH_ROWS):
            AuditRow.insert_many([from_entry(entry) for entry in entries[start : start + BATCH_ROWS]]).execute()
    row.sequence, row.hash = entries[-1].sequence, entries[-1].hash
    save(row)


@compiled
def _head() -> "ModelSelect[AuditHeadRow]":
    return locked(AuditHeadRow.select())
