"""The audit log: what was changed, by whom, and what was refused, as one chain of hashes."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from fedround_server.domain.aggregation import Aggregation

DOMAIN = "fedround.audit.v1"
"""What is hashed before the fields, so that a hash stands for an entry and for nothing else."""
START = "0" * 64
"""What the first entry has as previous_hash."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

acting: ContextVar[str] = ContextVar("acting", default="")
"""The id of the user in whose name something is done; empty for the server itself."""


@dataclass(frozen=True, slots=True)
class Note:
    """What an entry says, before it has its place in the chain.

    Attributes:
        action: What was done, in snake_case.
        training_id: The training that it is about, or empty.
        model_id: The model that it is about, or empty.
        subject: What it is about within that, or by itself: the id of a user or an update, a version, a round.
        facts: More, as docs/audit.md lists by action. Never free text of a caller, never a token or its hash.
    """

    action: str
    training_id: str = ""
    model_id: str = ""
    subject: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One link of the chain; facts are canonical JSON, and are hashed as the text that they are."""

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


@dataclass(frozen=True, slots=True)
class AuditHead:
    """The last link of the chain; before the first, sequence 0."""

    sequence: int
    hash: str


@dataclass(frozen=True, slots=True)
class Contribution:
    """What an update was to a version; weight is empty for a local model that was dealt, not averaged."""

    round: int
    update_id: str
    user_id: str
    user_name: str
    sha256: str
    num_examples: int
    weight: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a version of a model comes from: which algorithm made it in which round, or an upload for version 0."""

    model_id: str
    version: int
    sha256: str
    create_time: datetime
    sequence: int
    training_id: str = ""
    round: int = 0
    aggregation: Aggregation | None = None
    num_examples: int = 0
    contributions: tuple[Contribution, ...] = ()


def chain(notes: Iterable[Note], user_id: str, head: AuditHead, time: datetime) -> list[AuditEntry]:
    """Makes entries of notes, behind the head of the chain."""
    entries: list[AuditEntry] = []
    for note in notes:
        about = (note.action, note.training_id, note.model_id, note.subject, to_json(note.facts))
        sequence, previous = head.sequence + 1, head.hash
        micros = (time - EPOCH) // timedelta(microseconds=1)
        head = AuditHead(sequence, digest((sequence, micros, user_id, *about, previous)))
        entries.append(AuditEntry(sequence, time, user_id, *about, previous, head.hash))
    return entries


def digest(fields: Sequence[str | int]) -> str:
    """Returns the SHA-256 of an entry's fields but the hash, in the order of AuditEntry, the time in microseconds."""
    return hashlib.sha256(encode(fields)).hexdigest()


def encode(fields: Sequence[str | int]) -> bytes:
    """Writes DOMAIN and the fields as netstrings: the length of the UTF-8 text, a colon, the text, a comma.

    No two sequences of fields have the same encoding.
    """
    texts = [str(value).encode() for value in (DOMAIN, *fields)]
    return b"".join(b"%d:%s," % (len(text), text) for text in texts)


def to_json(facts: Mapping[str, Any]) -> str:
    """Writes facts as canonical JSON: sorted keys, ASCII, no white space."""
    return json.dumps(facts, sort_keys=True, allow_nan=False, separators=(",", ":"))
