"""Finds verbs that change something without a word in the audit log."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peewee
import pytest

from fedround_server.store.db.group_commit import Call, Transactions

WRITES = ("INSERT", "UPDATE", "DELETE")
# What was seen, and what was refused, changes nothing: refused calls have entries of their own.
ASIDE = ('INSERT INTO "last_seen"', 'INSERT INTO "rejected_update"')


@contextmanager
def noting_verbs(patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collects the statements of transactions that changed rows and noted nothing, for the time of the block."""
    unnoted: list[str] = []
    # PostgreSQL has a pool of threads, and a transaction stays on one of them.
    thread = threading.local()
    run, execute = Transactions._run, peewee.Database.execute_sql

    def watched(database: peewee.Database, sql: str, params: Any = None, *more: Any) -> Any:
        cursor = execute(database, sql, params, *more)
        changes = sql.startswith(WRITES) and cursor.rowcount > 0 and not sql.startswith(ASIDE)
        if changes and hasattr(thread, "statements"):
            thread.statements.append(sql)
        return cursor

    def checked(transactions: Transactions, call: Call) -> Any:
        thread.statements = []
        answer = run(transactions, call)
        if not any('INTO "audit"' in sql for sql in thread.statements):
            unnoted.extend(thread.statements)
        return answer

    patch.setattr(peewee.Database, "execute_sql", watched)
    patch.setattr(Transactions, "_run", checked)
    yield unnoted
