"""The chain of the audit log: what an entry is, how it is hashed, and how all of it is verified, without the server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

from fedround.v1 import audit_pb2
from fedround_client.ledger import Ledger

DOMAIN = "fedround.audit.v1"
START = "0" * 64


class AuditBroken(Exception):
    """The audit log is not what a server wrote, or not all of it.

    Attributes:
        sequence: The first entry that is wrong.
        problem: What is wrong with it.
    """

    def __init__(self, sequence: int, problem: str) -> None:
        super().__init__(f"entry {sequence}: {problem}")
        self.sequence = sequence
        self.problem = problem


@dataclass(frozen=True)
class AuditHead:
    """An end of the chain: now, or when somebody noted it."""

    sequence: int
    hash: str

    @classmethod
    def parse(cls, text: str) -> AuditHead:
        """Reads what `str` writes.

        Raises:
            ValueError: It is not SEQUENCE:HASH.
        """
        sequence, _, found = text.strip().partition(":")
        digits = found.lower()
        if not sequence.isdecimal() or len(digits) != len(START) or set(digits) - set("0123456789abcdef"):
            raise ValueError(f"{text!r} is not SEQUENCE:HASH, as `fedround audit verify` prints it")
        return cls(int(sequence), digits)

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash}"


@dataclass(frozen=True)
class AuditEntry:
    """One entry of the audit log, in the order in which its fields are hashed; what does not apply is empty.

    Attributes:
        sequence: Position in the log: 1, 2, 3, without gaps.
        time_us: When it was written, in microseconds since 1970 UTC.
        user_id: In whose name it was done; empty for the server itself.
        action: What was done.
        training_id: The training that it is about.
        model_id: The model that it is about.
        subject: What it is about within that.
        facts: More, as canonical JSON.
        previous_hash: Hash of the entry before.
        hash: SHA-256 of the other fields.
    """

    sequence: int
    time_us: int
    user_id: str
    action: str
    training_id: str
    model_id: str
    subject: str
    facts: str
    previous_hash: str
    hash: str

    @classmethod
    def from_message(cls, message: audit_pb2.AuditEntry) -> AuditEntry:
        """Reads an entry as the server sends it."""
        return cls(
            sequence=message.sequence,
            time_us=message.time.seconds * 1_000_000 + message.time.nanos // 1000,
            user_id=message.user_id,
            action=message.action,
            training_id=message.training_id,
            model_id=message.model_id,
            subject=message.subject,
            facts=message.facts,
            previous_hash=message.previous_hash,
            hash=message.hash,
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AuditEntry:
        """Reads an entry as a line of an export has it.

        Raises:
            ValueError: A field is missing, or there is one too many, or one of another type.
        """
        fields = cls.__dataclass_fields__
        if data.keys() != fields.keys():
            raise ValueError(f"an entry has the fields {', '.join(fields)}")
        if any(type(data[name]).__name__ != field.type for name, field in fields.items()):
            raise ValueError("sequence and time_us are integers, everything else is text")
        return cls(**data)

    def digest(self) -> str:
        """Returns the hash that the entry should have: SHA-256 over DOMAIN and the fields before it, as netstrings."""
        texts = [str(value).encode() for value in (DOMAIN, *astuple(self)[:-1])]
        return hashlib.sha256(b"".join(b"%d:%s," % (len(text), text) for text in texts)).hexdigest()


@dataclass(frozen=True)
class AuditReport:
    """What a chain that holds has in it.

    Attributes:
        head: Where it ends: note it elsewhere, and verify against it later.
        updates: Updates and reports that were accepted.
        counted: How many of them counted.
        superseded: How many will not count, each with a reason.
        waiting: How many are of rounds that are not done.
        versions: Versions of models that trainings made.
        refused: Calls that were refused.
    """

    head: AuditHead
    updates: int
    counted: int
    superseded: int
    waiting: int
    versions: int
    refused: int


class AuditChainVerifier:
    """Verifies a chain, entry by entry; of those behind it, it keeps the ids of the updates."""

    def __init__(self, anchor: AuditHead | None = None) -> None:
        """Begins before the first entry.

        Args:
            anchor: A head that was noted earlier; the chain has to go through it.
        """
        self._anchor = anchor
        self._last = AuditHead(0, START)
        self._ledger = Ledger()
        self._refused = 0

    def add(self, entry: AuditEntry) -> None:
        """Verifies the next entry.

        Raises:
            AuditBroken: It does not belong there, was changed, or tells of what cannot be.
        """
        expected = self._last.sequence + 1
        if entry.sequence != expected:
            raise AuditBroken(expected, f"is missing: the next one that is here is {entry.sequence}")
        if entry.previous_hash != self._last.hash:
            raise AuditBroken(expected, "does not follow the entry before it: one of the two was changed")
        if entry.hash != entry.digest():
            raise AuditBroken(expected, "its hash is not that of its fields: it was changed")
        self._last = AuditHead(entry.sequence, entry.hash)
        if self._anchor is not None and self._anchor.sequence == entry.sequence and self._anchor.hash != entry.hash:
            raise AuditBroken(expected, "has another hash than the head that was noted: the log was rewritten")
        try:
            facts = json.loads(entry.facts)
            if entry.action == "call_refused":
                self._refused += facts["count"]
            else:
                self._ledger.add(entry.action, entry.training_id, entry.model_id, entry.subject, facts)
        except ValueError as error:
            raise AuditBroken(expected, str(error)) from error
        except (KeyError, TypeError, AttributeError) as error:
            raise AuditBroken(expected, f"lacks what {entry.action} tells") from error

    def finish(self, head: AuditHead | None) -> AuditReport:
        """Verifies that the chain ends where it should.

        Args:
            head: Where the server, or the file, says that it ends; None if it does not say.

        Raises:
            AuditBroken: It does not.
        """
        missing = self._last.sequence + 1
        if self._anchor is not None and self._anchor.sequence > self._last.sequence:
            raise AuditBroken(missing, f"is missing: the log was cut off, it went to {self._anchor.sequence} once")
        if head is None:
            raise AuditBroken(missing, "may be missing: there is no line with the head, so the end is cut off")
        if head != self._last:
            raise AuditBroken(missing, f"is missing, or too much is here: the log should end with {head}")
        found = self._ledger
        return AuditReport(
            self._last,
            updates=found.accepted,
            counted=found.counted,
            superseded=found.superseded,
            waiting=found.accepted - found.counted - found.superseded,
            versions=found.versions,
            refused=self._refused,
        )
