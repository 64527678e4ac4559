"""The audit trail: what verbs record of their changes, appended to the audit log at the end of their transaction."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from peewee import ModelSelect

from fedround_server.domain.audit import SERVER, START, AuditEntry, AuditHead, AuditRecord, audit_chain
from fedround_server.store.db.compiled import compiled
from fedround_server.store.db.rows import insert, locked, new_row, save
from fedround_server.store.tables.audit_schema import AuditHeadRow, AuditRow
from fedround_server.store.tables.base import Row
from fedround_server.store.tables.mapping import from_entry

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

    The entry is in the chain of the training that it is about, or in the server's.

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
    chains = {record.training_id for _, records in changes for record in records}
    # The lock on the head of a chain makes changes wait for the commit of the one before. Heads are locked after all
    # other rows, and always in this order: trainings by id, then the server. So there is no deadlock, and a
    # transaction that holds a head waits for commits alone.
    heads = {chain: _head.first(chain) or _begin(chain) for chain in sorted(chains - {SERVER})}
    if SERVER in chains or any(not head.sequence for head in heads.values()):
        heads[SERVER] = _head.one(SERVER)
    entries: list[AuditEntry] = []
    for user_id, records in changes:
        time = now()
        for chain, some in _by_chain(records).items():
            head = heads[chain]
            if chain != SERVER and not head.sequence:
                (start,) = _extend(heads[SERVER], [AuditRecord("chain_begun", chain)], user_id, time)
                entries.append(start)
                head.hash, head.start = start.hash, start.sequence
            entries += _extend(head, some, user_id, time)
    insert(*(new_row(AuditRow, **from_entry(entry)) for entry in entries))
    for row in heads.values():
        save(row)


def _begin(chain: str) -> AuditHeadRow:
    """Returns the head of a chain that had none: a new one, or that of a transaction that has committed meanwhile."""
    AuditHeadRow.insert(chain=chain, sequence=0, hash=START, start=0).on_conflict_ignore().execute()
    return _head.one(chain)


def _by_chain(records: Iterable[AuditRecord]) -> Mapping[str, Sequence[AuditRecord]]:
    found: dict[str, list[AuditRecord]] = {}
    for one in records:
        found.setdefault(one.training_id, []).append(one)
    return found


def _extend(row: AuditHeadRow, records: Iterable[AuditRecord], user_id: str, time: datetime) -> Sequence[AuditEntry]:
    """Returns the entries that append records to a chain, and makes the last one its head."""
    entries = audit_chain(records, user_id, AuditHead(row.sequence, row.hash, row.chain), time)
    row.sequence, row.hash = entries[-1].sequence, entries[-1].hash
    return entries


@compiled
def _head(chain: str) -> "ModelSelect[AuditHeadRow]":
    return locked(AuditHeadRow.select().where(AuditHeadRow.chain == chain))
