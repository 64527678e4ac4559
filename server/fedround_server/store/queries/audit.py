"""Reads of the audit log."""

from fedround_server.domain.audit import AuditEntry, AuditHead
from fedround_server.store.tables.mapping import to_entry
from fedround_server.store.tables.schema import AuditHeadRow, AuditRow


def find_head() -> AuditHead:
    """Returns the sequence and hash of the last entry."""
    row = AuditHeadRow.get()
    return AuditHead(row.sequence, row.hash)


def find_entries(after: int, until: int, limit: int) -> list[AuditEntry]:
    """Returns entries in order.

    Args:
        after: The sequence after which to begin.
        until: The last sequence.
        limit: The maximum number of entries.
    """
    rows = AuditRow.select().where(AuditRow.sequence > after, AuditRow.sequence <= until)
    return [to_entry(row) for row in rows.order_by(AuditRow.sequence).limit(limit)]
