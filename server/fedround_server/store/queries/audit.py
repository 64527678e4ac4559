"""Reads of the audit log."""

from collections.abc import Sequence
from datetime import datetime

from peewee import JOIN, Tuple, fn

from fedround_server.domain.audit import SERVER, START, AuditEntry, AuditHead, AuditPage
from fedround_server.store.db.compiled import in_array
from fedround_server.store.tables.audit_schema import AuditHeadRow, AuditRow, RecordedHeadRow
from fedround_server.store.tables.base import InstantField
from fedround_server.store.tables.mapping import to_entry

VERSIONS = ("version_made", "shadow_version_made", "counterfactual_version_made")
"""The actions of entries about versions that were made of updates."""


def find_head(chain: str) -> AuditHead:
    """Returns the head of a chain; that of a training without one has the sequence 0."""
    row: AuditHeadRow | None = AuditHeadRow.get_or_none(AuditHeadRow.chain == chain)
    return AuditHead(0, START, chain) if row is None else AuditHead(row.sequence, row.hash, chain)


def list_unrecorded_heads() -> list[AuditHead]:
    """Returns the heads of trainings' chains that have grown since the server's chain got their heads, by chain."""
    rows = (
        AuditHeadRow.select(AuditHeadRow.chain, AuditHeadRow.sequence, AuditHeadRow.hash)
        .join(RecordedHeadRow, JOIN.LEFT_OUTER, on=AuditHeadRow.chain == RecordedHeadRow.chain)
        .where(AuditHeadRow.chain != SERVER, AuditHeadRow.sequence > fn.COALESCE(RecordedHeadRow.sequence, 0))
    )
    return [AuditHead(row.sequence, row.hash, row.chain) for row in rows.order_by(AuditHeadRow.chain)]


def find_last_time() -> datetime | None:
    """Returns the time of the last entry; None if there is none."""
    last = (AuditRow.chain == AuditHeadRow.chain) & (AuditRow.sequence == AuditHeadRow.sequence)
    time = AuditHeadRow.select(fn.MAX(AuditRow.time).coerce(False)).join(AuditRow, on=last).scalar()
    return None if time is None else InstantField().python_value(int(time))


def find_entries(chain: str, after: int, until: int, limit: int) -> list[AuditEntry]:
    """Returns entries of a chain in order: those after one sequence, up to and including another."""
    rows = AuditRow.select().where(AuditRow.chain == chain, AuditRow.sequence > after, AuditRow.sequence <= until)
    return [to_entry(row) for row in rows.order_by(AuditRow.sequence).limit(limit)]


def read_page(chain: str, after: int, until: int, limit: int) -> AuditPage:
    """Returns entries of the trainings' chains in the order of chains, and the heads of the chains that end with them.

    The statements must see the same state of the database. What is not as it should be is part of the page, too, for
    the reader to find: entries behind a head, and entries of a chain without a head.

    Args:
        chain: The chain of the entry before the first one, or the server's.
        after: The sequence of that entry.
        until: Chains that begin behind this entry of the server's chain are left out: their reader does not know them.
        limit: How many entries to read at most.
    """
    behind = Tuple(AuditRow.chain, AuditRow.sequence) > Tuple(chain, after)
    if chain == SERVER:
        behind = AuditRow.chain > SERVER
    rows = AuditRow.select().where(behind).order_by(AuditRow.chain, AuditRow.sequence).limit(limit + 1)
    entries = [to_entry(row) for row in rows]
    following = entries[limit] if len(entries) > limit else None
    del entries[limit:]
    # The chain that a reader goes on with may have no more entries, but ends all the same.
    by_chain: dict[str, list[AuditEntry]] = {} if chain == SERVER else {chain: []}
    for entry in entries:
        by_chain.setdefault(entry.chain, []).append(entry)
    heads = {row.chain: row for row in AuditHeadRow.select().where(in_array(AuditHeadRow.chain, list(by_chain)))}
    items: list[AuditEntry | AuditHead] = []
    for name, some in by_chain.items():
        row = heads.get(name)
        if row is not None and row.start > until:
            continue
        items += some
        if row is not None and (following is None or following.chain != name):
            items.append(AuditHead(row.sequence, row.hash, name))
    return AuditPage(items, None if following is None else (following.chain, following.sequence - 1))


def find_origin(model_id: str, version: int) -> AuditRow | None:
    """Returns the entry of the creation of a model version."""
    row: AuditRow | None = AuditRow.get_or_none(
        AuditRow.model_id == model_id,
        AuditRow.action.in_(VERSIONS if version else ["model_created"]),
        AuditRow.subject == str(version),
    )
    return row


def list_counted_updates(training_id: str, rounds: Sequence[int]) -> list[AuditRow]:
    """Returns the entries of the updates that counted in rounds, in order."""
    rows = AuditRow.select().where(
        AuditRow.training_id == training_id,
        AuditRow.action == "updates_counted",
        AuditRow.subject.in_([str(number) for number in rounds]),
    )
    # Those of the server's chain are older than the training's own chain.
    return list(rows.order_by(AuditRow.chain, AuditRow.sequence))
