"""What verbs note of what they change: chained behind the audit log as the last thing of their transaction."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from peewee import ModelSelect

from fedround_server.domain.audit import AuditHead, Note, chain
from fedround_server.store.db.compiled import compiled, insert, save
from fedround_server.store.tables.mapping import from_entry
from fedround_server.store.tables.schema import AuditHeadRow, AuditRow, Row, database_proxy

BATCH = 500

_notes: ContextVar[list[Note]] = ContextVar("notes")


def record(action: str, about: Row | None = None, /, *, subject: object = "", **facts: Any) -> None:
    """Notes what the verb under way changed; an entry of the audit log if it commits.

    Args:
        action: What was done, in snake_case; docs/audit.md lists them all.
        about: The row of the training, the round or the model that it is about.
        subject: What it is about within that.
        facts: More. Never free text of a caller, never a token or its hash.
    """
    training_id, model_id = getattr(about, "training_id", ""), getattr(about, "model_id", "")
    add(Note(action, training_id, model_id, str(subject), facts))


def add(one: Note) -> None:
    """Adds to what the verb under way notes."""
    _notes.get().append(one)


@contextmanager
def recording(user_id: str, now: Callable[[], datetime]) -> Iterator[None]:
    """Chains what is noted in the block, at its end; the transaction has nothing to do after that but commit.

    Args:
        user_id: Who acts; empty for the server itself.
        now: Tells the time that the entries get.
    """
    notes: list[Note] = []
    reset = _notes.set(notes)
    try:
        yield
    finally:
        _notes.reset(reset)
    if notes:
        _append(notes, user_id, now)


def _append(notes: Sequence[Note], user_id: str, now: Callable[[], datetime]) -> None:
    # Every change waits here for the one before it to commit. Who holds the head waits for no other row any more: so no
    # two verbs wait for each other, and nobody waits for longer than a commit takes.
    row = _head.one()
    entries = chain(notes, user_id, AuditHead(row.sequence, row.hash), now())
    if len(entries) == 1:
        insert(AuditRow(**from_entry(entries[0])))
    else:
        for start in range(0, len(entries), BATCH):
            AuditRow.insert_many([from_entry(entry) for entry in entries[start : start + BATCH]]).execute()
    row.sequence, row.hash = entries[-1].sequence, entries[-1].hash
    save(row)


@compiled
def _head() -> "ModelSelect[AuditHeadRow]":
    rows = AuditHeadRow.select()
    return rows.for_update() if database_proxy.for_update else rows
