"""Verification of the audit log's hash chain, without the server."""

from __future__ import annotations

import json
from dataclasses import dataclass

from fedround_client.audit_entry import START, AuditBroken, AuditEntry, AuditHead
from fedround_client.ledger import Ledger, count_of


@dataclass(frozen=True)
class AuditReport:
    """The contents of a valid audit log.

    Attributes:
        head: Its last entry: record it elsewhere, and verify the log against it later.
        updates: Updates and reports that were accepted.
        counted: How many of them were counted.
        superseded: How many will not be counted, each with a reason.
        waiting: How many belong to rounds that are not done.
        versions: Versions of models that trainings produced.
        refused: Calls that were denied.
    """

    head: AuditHead
    updates: int
    counted: int
    superseded: int
    waiting: int
    versions: int
    refused: int


class AuditChainVerifier:
    """Verifies an audit log entry by entry. Of the entries seen, it keeps only the ids of the updates."""

    def __init__(self, anchor: AuditHead | None = None) -> None:
        """Creates a verifier that has seen no entry.

        Args:
            anchor: A head that was recorded earlier; the log must contain it.
        """
        self._anchor = anchor
        self._last = AuditHead(0, START)
        self._ledger = Ledger()
        self._refused = 0

    def add(self, entry: AuditEntry) -> None:
        """Verifies the next entry.

        Raises:
            AuditBroken: It is out of sequence, was changed, or contradicts the entries before it.
        """
        expected = self._last.sequence + 1
        if entry.sequence != expected:
            raise AuditBroken(expected, f"is missing: the next entry is {entry.sequence}")
        if entry.previous_hash != self._last.hash:
            raise AuditBroken(expected, "does not follow the entry before it: one of the two was changed")
        try:
            digest = entry.digest()
        except UnicodeEncodeError as error:
            raise AuditBroken(expected, "has text that is not Unicode") from error
        if entry.hash != digest:
            raise AuditBroken(expected, "its hash does not match its fields: it was changed")
        self._last = AuditHead(entry.sequence, entry.hash)
        if self._anchor is not None and self._anchor.sequence == entry.sequence and self._anchor.hash != entry.hash:
            raise AuditBroken(expected, "has another hash than the head that was recorded: the log was rewritten")
        try:
            facts = json.loads(entry.facts, parse_constant=_reject_constant)
        except ValueError as error:
            raise AuditBroken(expected, f"its facts are not JSON: {error}") from error
        except RecursionError as error:
            raise AuditBroken(expected, "its facts are nested too deeply") from error
        try:
            if entry.action == "call_refused":
                self._refused += count_of(facts, "count")
            else:
                self._ledger.add(entry, facts)
        except ValueError as error:
            raise AuditBroken(expected, str(error)) from error
        except (KeyError, TypeError, AttributeError) as error:
            raise AuditBroken(expected, f"lacks a field of {entry.action}") from error

    def finish(self, head: AuditHead | None) -> AuditReport:
        """Verifies that the log ends where it should.

        Args:
            head: The head according to the server or the file; None if the file has none.

        Raises:
            AuditBroken: Entries are missing at the end, or there are too many.
        """
        missing = self._last.sequence + 1
        if self._anchor is not None and self._anchor.sequence > self._last.sequence:
            raise AuditBroken(
                missing, f"is missing: the log was cut off, it had {self._anchor.sequence} entries before"
            )
        if head is None:
            raise AuditBroken(missing, "may be missing: the file has no line with the head, so its end was cut off")
        if head != self._last:
            raise AuditBroken(missing, f"is missing, or there are too many entries: the log should end with {head}")
        ledger = self._ledger
        return AuditReport(
            self._last,
            updates=ledger.accepted,
            counted=ledger.counted,
            superseded=ledger.superseded,
            waiting=ledger.accepted - ledger.counted - ledger.superseded,
            versions=ledger.versions,
            refused=self._refused,
        )


def _reject_constant(name: str) -> None:
    raise ValueError(f"they contain {name}")
