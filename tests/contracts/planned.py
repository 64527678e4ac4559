"""Finds statements of verbs that read a whole table, or the whole history of a training, instead of using an index."""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import peewee
import pytest

from fedround_server.store.db.group_commit import Attempt, Transactions
from fedround_server.store.tables.schema import TABLES

PLANNED = re.compile("SELECT|UPDATE|DELETE|INSERT .* SELECT")
# All but the state of the server, which is one row, and the few replicas.
GROWING = {table._meta.table_name for table in TABLES} - {"server_state", "replica"}
# Tables that grow with the rounds of a training: a search by training or model alone reads the whole history.
HISTORIES = {
    "round",
    "cohort",
    "round_update",
    "assignment",
    "artifact",
    "rejected_update",
    "event",
    "audit",
    "model_version",
}
ALLOWED = {
    "SELECT MAX(": "the greatest of an index is its last entry",
    'LEFT OUTER JOIN "audit_recorded_head"': "all heads are compared with what the server's chain has of them",
    "(0 = 1)": "nothing is read where nothing is looked for",
    'ORDER BY "t1"."version" DESC LIMIT': "a page comes from the end of the index, and ends at its limit",
}
"""Parts of statements whose plan seems to read much, and why it does not."""
ALLOWED_IN_POSTGRES = {"SELECT DISTINCT": "of three models it reads three, then their versions; of many it would not"}
# PostgreSQL reads a small table sequentially, whatever indexes it has, unless that is disabled.
FORBIDDEN = ("enable_seqscan", "enable_hashjoin", "enable_mergejoin")

_fine: set[str] = set()


@contextmanager
def planning(patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collects the statements whose plans read too much, within the block; each is planned once a run."""
    wasteful: list[str] = []
    # Statements of the tests themselves have no name, and may read anything.
    thread = threading.local()
    run, execute = Transactions._run, peewee.Database.execute_sql

    def named(transactions: Transactions, attempt: Attempt) -> Any:
        thread.verb = attempt.calls[0].name
        try:
            return run(transactions, attempt)
        finally:
            thread.verb = ""

    def watched(database: peewee.Database, sql: str, params: Any = None, *more: Any) -> Any:
        if getattr(thread, "verb", "") and PLANNED.match(sql) and sql not in _fine:
            found = _plan(database, execute, sql, params)
            wasteful.extend(f"{thread.verb}: {line}: {sql}" for line in found)
            if not found:
                _fine.add(sql)
        return execute(database, sql, params, *more)

    patch.setattr(Transactions, "_run", named)
    patch.setattr(peewee.Database, "execute_sql", watched)
    yield wasteful


def _plan(database: peewee.Database, execute: Any, sql: str, params: Any) -> list[str]:
    """Returns the steps of a statement's plan that read too much."""
    is_sqlite = isinstance(database, peewee.SqliteDatabase)
    if any(part in sql for part in (ALLOWED if is_sqlite else ALLOWED | ALLOWED_IN_POSTGRES)):
        return []
    if is_sqlite:
        aliases = {alias: table for table, alias in re.findall(r'"(\w+)" AS "(\w+)"', sql)}
        steps = execute(database, f"EXPLAIN QUERY PLAN {sql}", params).fetchall()
        return [detail for *_, detail in steps if _reads_too_much(detail, aliases)]
    for setting in FORBIDDEN:
        execute(database, f"SET LOCAL {setting} = off")
    ((plan,),) = execute(database, f"EXPLAIN (FORMAT JSON) {sql}", params).fetchall()
    for setting in FORBIDDEN:
        execute(database, f"SET LOCAL {setting} = on")
    return [json.dumps(node) for node in _nodes(plan[0]["Plan"]) if _scans(node)]


def _reads_too_much(step: str, aliases: Mapping[str, str]) -> bool:
    what = re.match(r"(SCAN|SEARCH) (\w+)", step)
    if what is None:
        return False
    table = aliases.get(what[2], what[2])
    if what[1] == "SCAN":
        return table in GROWING
    return table in HISTORIES and re.search(r"\((training|model)_id=\?\)", step) is not None


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield {name: value for name, value in plan.items() if name != "Plans"}
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _scans(node: Mapping[str, Any]) -> bool:
    is_scan = node["Node Type"].endswith("Scan") and node.get("Relation Name") in GROWING
    return is_scan and not node.keys() & {"Index Cond", "Recheck Cond"}
