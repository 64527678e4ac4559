"""Verification of the audit log's hash chains, without the server."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from fedround_client.audit_entry import SERVER, START, AuditBroken, AuditEntry, AuditHead
from fedround_client.ledger import Facts, Ledger, count_of


@dataclass(frozen=True)
class AuditReport:
    """The contents of a valid audit log.

    Attributes:
        head: The last entry of the server's chain: record it elsewhere, and verify the log against it later.
        updates: Updates and reports that were accepted.
        counted: How many of them were counted.
        superseded: How many will not be counted, each with a reason.
        waiting: How many belong to rounds that are not done.
        versions: Versions of models that trainings produced.
        refused: Calls that were denied.
        entries: Entries of all chains.
        chains: Chains of trainings.
        uncovered: Entries that the head does not cover, since they came after the heads of chains were recorded.
    """

    head: AuditHead
    updates: int
    counted: int
    superseded: int
    waiting: int
    versions: int
    refused: int
    entries: int
    chains: int
    uncovered: int


@dataclass
class _Chain:
    """The chain that is being read.

    Attributes:
        last: Its last entry.
        recorded: Hashes of entries to come, by sequence: those of heads that were recorded.
        covered: The sequence of the last head that was recorded.
        ended: Whether its present head was compared.
    """

    last: AuditHead
    recorded: dict[int, str] = field(default_factory=dict)
    covered: int = 0
    ended: bool = False

    def broken(self, problem: str) -> AuditBroken:
        """Returns what is wrong with the next entry."""
        return AuditBroken(self.last.sequence + 1, problem, self.last.chain)


class AuditVerifier:
    """Verifies an audit log entry by entry: first the server's chain, then those of the trainings, in any order.

    Of the entries seen, it keeps only the ids of the updates, and the heads of chains.
    """

    def __init__(self, anchor: AuditHead | None = None) -> None:
        """Creates a verifier that has seen no entry.

        Args:
            anchor: A head that was recorded earlier; the log must contain it.
        """
        self._chain = _Chain(AuditHead(0, START))
        # Of each training's chain that was not read yet: what the server's chain says of it.
        self._awaited: dict[str, _Chain] = {}
        self._begun: set[str] = set()
        self._ledger = Ledger()
        self._refused = self._entries = self._uncovered = 0
        self._server = self._chain
        self._anchor = anchor
        self._expect_anchor(self._chain)

    def add(self, entry: AuditEntry) -> None:
        """Verifies the next entry.

        Raises:
            AuditBroken: It is out of sequence, was changed, or contradicts the entries before it.
        """
        if entry.chain != self._chain.last.chain:
            self._begin(entry.chain)
        chain = self._chain
        expected = chain.last.sequence + 1
        if entry.sequence != expected:
            raise chain.broken(f"is missing: the next entry is {entry.sequence}")
        if entry.previous_hash != chain.last.hash:
            raise chain.broken("does not follow the entry before it: one of the two was changed")
        try:
            digest = entry.digest()
        except UnicodeEncodeError as error:
            raise chain.broken("has text that is not Unicode") from error
        if entry.hash != digest:
            raise chain.broken("its hash does not match its fields: it was changed")
        if chain.recorded.pop(expected, digest) != digest:
            raise chain.broken("has another hash than the head that was recorded: the log was rewritten")
        self._check_content(entry, chain)
        chain.last = AuditHead(expected, digest, entry.chain)
        chain.ended = False
        self._entries += 1

    def end(self, head: AuditHead) -> None:
        """Verifies that a chain ends where it should.

        Args:
            head: The head of the chain that was read last, or of one without entries, according to the server or file.

        Raises:
            AuditBroken: Entries are missing at the end, or there are too many.
        """
        if head.chain != self._chain.last.chain:
            self._begin(head.chain)
        chain = self._chain
        if chain.recorded:
            raise chain.broken(f"is missing: the log was cut off, it had {max(chain.recorded)} entries before")
        if head != chain.last:
            raise chain.broken(f"is missing, or there are too many entries: the log should end with {head}")
        if not chain.ended and chain is not self._server:
            self._uncovered += chain.last.sequence - chain.covered
            chain.covered = chain.last.sequence
        chain.ended = True

    def finish(self) -> AuditReport:
        """Verifies that no chain is missing.

        Raises:
            AuditBroken: A chain is missing, or its head.
        """
        self._leave()
        for chain in self._awaited.values():
            raise chain.broken("is missing, with the whole chain of the training")
        if self._anchor is not None and self._anchor.chain not in {SERVER, *self._begun}:
            raise AuditBroken(1, "is missing, with the whole chain of the training", self._anchor.chain)
        ledger = self._ledger
        return AuditReport(
            self._server.last,
            updates=ledger.accepted,
            counted=ledger.counted,
            superseded=ledger.superseded,
            waiting=ledger.accepted - ledger.counted - ledger.superseded,
            versions=ledger.versions,
            refused=self._refused,
            entries=self._entries,
            chains=len(self._begun),
            uncovered=self._uncovered,
        )

    def _begin(self, chain: str) -> None:
        """Goes on with the chain of a training."""
        self._leave()
        if chain not in self._awaited:
            known = chain == SERVER or chain in self._begun
            problem = "its chain comes a second time" if known else "the server's chain does not have its chain"
            raise AuditBroken(1, problem, chain)
        self._chain = self._awaited.pop(chain)

    def _expect_anchor(self, chain: _Chain) -> None:
        if self._anchor is not None and self._anchor.sequence and self._anchor.chain == chain.last.chain:
            chain.recorded[self._anchor.sequence] = self._anchor.hash

    def _leave(self) -> None:
        if not self._chain.ended:
            raise self._chain.broken("may be missing: there is no head of the chain, so its end was cut off")

    def _check_content(self, entry: AuditEntry, chain: _Chain) -> None:
        try:
            facts = json.loads(entry.facts, parse_constant=_reject_constant)
        except ValueError as error:
            raise chain.broken(f"its facts are not JSON: {error}") from error
        except RecursionError as error:
            raise chain.broken("its facts are nested too deeply") from error
        try:
            self._check_place(entry, chain)
            if entry.action == "call_refused":
                self._refused += count_of(facts, "count")
            elif entry.action == "heads_recorded":
                self._record_heads(facts)
            else:
                self._ledger.add(entry, facts)
        except ValueError as error:
            raise chain.broken(str(error)) from error
        except (KeyError, TypeError, AttributeError) as error:
            raise chain.broken(f"lacks a field of {entry.action}") from error

    def _check_place(self, entry: AuditEntry, chain: _Chain) -> None:
        """Verifies that an entry is in the chain of its training, once that has begun."""
        if chain is not self._server:
            if entry.training_id != chain.last.chain or entry.action in ("chain_begun", "heads_recorded"):
                raise ValueError("does not belong in the chain of this training")
        elif entry.action == "chain_begun":
            if entry.training_id in self._begun or not entry.training_id:
                raise ValueError(f"the chain of the training {entry.training_id} has begun before")
            begun = _Chain(AuditHead(0, entry.hash, entry.training_id))
            self._expect_anchor(begun)
            self._begun.add(entry.training_id)
            self._awaited[entry.training_id] = begun
        elif entry.training_id in self._begun:
            raise ValueError(f"belongs in the chain of the training {entry.training_id}")

    def _record_heads(self, facts: Facts) -> None:
        for chain_id, text in facts["heads"].items():
            chain, head = self._awaited.get(chain_id), AuditHead.parse(text, chain_id)
            if chain is None:
                raise ValueError(f"names a head of the training {chain_id}, whose chain has not begun")
            if chain.recorded.setdefault(head.sequence, head.hash) != head.hash:
                raise ValueError(f"names another head of the training {chain_id} than was recorded before")
            chain.covered = max(chain.covered, head.sequence)


def verify(items: Iterable[AuditEntry | AuditHead], anchor: AuditHead | None = None) -> AuditReport:
    """Verifies an audit log: the entries of its chains, each with its head behind it.

    Raises:
        AuditBroken: The log was changed, or is incomplete.
    """
    verifier = AuditVerifier(anchor)
    for item in items:
        if isinstance(item, AuditHead):
            verifier.end(item)
        else:
            verifier.add(item)
    return verifier.finish()


def _reject_constant(name: str) -> None:
    raise ValueError(f"they contain {name}")
