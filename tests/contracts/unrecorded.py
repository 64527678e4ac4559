"""Finds verbs that change rows without an audit record."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peewee
import pytest

from fedround_server.store.db.group_commit import Attempt, Transactions
from fedround_server.store.tables.failure_schema import RejectedUpdateRow
from fedround_server.store.tables.schema import (
    ArtifactRow,
    AssignmentRow,
    LastSeenRow,
    ModelBaseRow,
    ModelVersionRow,
    UpdateRow,
)

HAVE_FILES = (ModelVersionRow, ModelBaseRow, ArtifactRow, UpdateRow, AssignmentRow)
WRITES = ("INSERT", "UPDATE", "DELETE")
# Neither the time when a user was last seen nor the count of rejected updates is a change; nor are checksums of a file.
ASIDE = (
    *(f'INSERT INTO "{table._meta.table_name}"' for table in (LastSeenRow, RejectedUpdateRow)),
    *(f'UPDATE "{table._meta.table_name}" SET "checksums" =' for table in HAVE_FILES),
    'UPDATE "model_version" SET "delta_checksums" =',
    # Which replica aggregates a round, and how far it has told of connections, is no change either.
    *('UPDATE "round" SET "epoch" =', 'UPDATE "round" SET "keeper" =', 'UPDATE "replica" SET "presence_version" ='),
)


@contextmanager
def unrecorded_changes(patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collects the statements of transactions that changed rows and recorded nothing, within the block."""
    unrecorded: list[str] = []
    # PostgreSQL has a pool of threads, and a transaction stays on one of them.
    thread = threading.local()
    run, execute = Transactions._run, peewee.Database.execute_sql

    def watched(database: peewee.Database, sql: str, params: Any = None, *more: Any) -> Any:
        cursor = execute(database, sql, params, *more)
        changes = sql.startswith(WRITES) and cursor.rowcount > 0 and not sql.startswith(ASIDE)
        if changes and hasattr(thread, "statements"):
            thread.statements.append(sql)
        return cursor

    def checked(transactions: Transactions, attempt: Attempt) -> Any:
        thread.statements = []
        answer = run(transactions, attempt)
        if not any('INTO "audit"' in sql for sql in thread.statements):
            unrecorded.extend(thread.statements)
        return answer

    patch.setattr(peewee.Database, "execute_sql", watched)
    patch.setattr(Transactions, "_run", checked)
    yield unrecorded
