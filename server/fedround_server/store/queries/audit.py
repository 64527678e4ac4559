"""Reads of the audit log."""

from collections.abc import Sequence
from datetime import datetime

from fedround_server.domain.audit import AuditEntry, AuditHead
from fedround_server.store.tables.mapping import to_entry
from fedround_server.store.tables.schema import AuditHeadRow, AuditRow

VERSIONS = ("version_made", "shadow_version_made", "counterfactual_version_made")
"""The actions of entries about versions that were made of updates."""


def find_head() -> AuditHead:
    """Returns the sequence and hash of the last entry."""
    row = AuditHeadRow.get()
    return AuditHead(row.sequence, row.hash)


def find_last_time() -> datetime | None:
    """Returns the time of the last entry; None if there is none."""
    row: AuditRow | None = AuditRow.select().order_by(AuditRow.sequence.desc()).first()
    return None if row is None else to_entry(row).time


def find_entries(after: int, until: int, limit: int) -> list[AuditEntry]:
    """Returns entries in order: those after one sequence, up to and including another."""
    rows = AuditRow.select().where(AuditRow.sequence > after, AuditRow.sequence <= until)
    return [to_entry(row) for row in rows.order_by(AuditRow.sequence).limit(limit)]


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
    return list(rows.order_by(AuditRow.sequence))
