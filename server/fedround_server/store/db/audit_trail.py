"""The audit trail: what verbs record of their changes, appended to the audit log at the end of their transaction."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from peewee import ModelSelect

from fedround_server.domain.audit import AuditHead, AuditRecord, audit_chain
from fedround_server.store.db.compiled import compiled
from fedround_server.store.db.rows import insert, locked, new_row, save
from fedround_server.store.tables.base import Row
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
def collecting() -> Iterator[Sequence[AuditRecord]]:
    """Collects the records of a block."""
    records: list[AuditRecord] = []
    reset = _records.set(records)
    try:
        yield records
    finally:
        _records.reset(reset)


def write(changes: Iterable[tuple[str, Sequence[AuditRecord]]], now: Callable[[], datetime]) -> None:
    """Writes the records of changes, each by a user; only the commit may follow in the transaction."""
    changes = [(user_id, records) for user_id, records in changes if records]
    if not changes:
        return
    # The lock on the head makes every change wait for the commit of the one before it. A transaction that holds the
    # head waits for no other lock: so there is no deadlock, and no wait is longer than a commit.
    row = _head.one()
    head, entries = AuditHead(row.sequence, row.hash), []
    for user_id, records in changes:
        chain = audit_chain(records, user_id, head, now())
        head = AuditHead(chain[-1].sequence, chain[-1].hash)
        entries += chain
    insert(*(new_row(AuditRow, **from_entry(entry)) for entry in entries))
    row.sequence, row.hash = head.sequence, head.hash
    save(row)


@compiled
def _head() -> "ModelSelect[AuditHeadRow]":
    return locked(AuditHeadRow.select())
