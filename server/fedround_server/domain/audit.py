"""The audit log: who changed what, and which calls were denied, as chains of hashes."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from fedround_server.domain.aggregation import Aggregation

DOMAIN = "fedround.audit.v1"
"""Hashed before the fields, so that no other use of SHA-256 produces the hash of an entry."""
START = "0" * 64
"""The previous_hash of the first entry of the server's chain."""
SERVER = ""
"""The chain of what concerns no training; that of a training has its id."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

acting: ContextVar[str] = ContextVar("acting", default="")
"""The id of the user who makes the current call; empty for the server itself."""


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """The content of an entry, before it has its place in the chain.

    Attributes:
        action: The action, in snake_case.
        training_id: The training that it is about, or empty.
        model_id: The model that it is about, or empty.
        subject: What it is about, within the training or model or on its own: a user id, an update id, a version or a
            round.
        facts: Details, listed by action in docs/audit.md. Never free text of a caller, never a token or its hash.
        notes: More details of the same kind, for the server's log alone.
    """

    action: str
    training_id: str = ""
    model_id: str = ""
    subject: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An entry of a chain; facts are canonical JSON, and are hashed as text."""

    sequence: int
    time: datetime
    user_id: str
    action: str
    training_id: str
    model_id: str
    subject: str
    facts: str
    previous_hash: str
    hash: str
    chain: str


@dataclass(frozen=True, slots=True)
class AuditHead:
    """The sequence and hash of the last entry of a chain; sequence 0 if it is empty."""

    sequence: int
    hash: str
    chain: str = SERVER

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash}"


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Some entries of the trainings' chains.

    Attributes:
        items: The entries, in the order of chains; behind the last one of a chain its head.
        next: The chain and the sequence behind which the next page begins; None after the last one.
    """

    items: Sequence[AuditEntry | AuditHead]
    next: tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class Contribution:
    """How an update contributed to a version; weight is empty for a local model that was assigned, not averaged."""

    round: int
    update_id: str
    user_id: str
    user_name: str
    sha256: str
    num_examples: int
    weight: str


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a model version: the algorithm and round that made it, or an upload for version 0."""

    model_id: str
    version: int
    sha256: str
    create_time: datetime
    sequence: int
    chain: str
    training_id: str = ""
    round: int = 0
    aggregation: Aggregation | None = None
    num_examples: int = 0
    contributions: tuple[Contribution, ...] = ()


def audit_chain(records: Iterable[AuditRecord], user_id: str, head: AuditHead, time: datetime) -> list[AuditEntry]:
    """Returns the entries that append records to a chain, in their order; user_id is empty for the server itself."""
    entries: list[AuditEntry] = []
    for record in records:
        about = (record.action, record.training_id, record.model_id, record.subject, to_json(record.facts))
        sequence, previous = head.sequence + 1, head.hash
        micros = (time - EPOCH) // timedelta(microseconds=1)
        head = AuditHead(sequence, digest((sequence, micros, user_id, *about, previous)), head.chain)
        entries.append(AuditEntry(sequence, time, user_id, *about, previous, head.hash, head.chain))
    return entries


def digest(fields: Sequence[str | int]) -> str:
    """Returns the SHA-256 of all fields of an entry but its hash, in order, the time in microseconds since 1970 UTC."""
    return hashlib.sha256(encode(fields)).hexdigest()


def encode(fields: Sequence[str | int]) -> bytes:
    """Encodes DOMAIN and the fields as netstrings: the length of the UTF-8 text, a colon, the text, a comma.

    The encoding is injective: no two sequences of fields have the same one.
    """
    texts = [str(value).encode() for value in (DOMAIN, *fields)]
    return b"".join(b"%d:%s," % (len(text), text) for text in texts)


def to_json(facts: Mapping[str, Any]) -> str:
    """Returns facts as canonical JSON: sorted keys, ASCII, no white space."""
    return json.dumps(facts, sort_keys=True, allow_nan=False, separators=(",", ":"))
