"""Entries of the audit log, and their hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

from fedround.v1 import audit_pb2
from fedround_client.printable import one_line

DOMAIN = "fedround.audit.v1"
START = "0" * 64
SERVER = ""
"""The chain of what concerns no training."""


class AuditBroken(Exception):
    """The audit log was changed, or is incomplete.

    Attributes:
        sequence: Sequence of the first wrong entry.
        problem: What is wrong with it.
        chain: The chain that it is in: id of a training, or empty for the server's.
    """

    def __init__(self, sequence: int, problem: str, chain: str = SERVER) -> None:
        place = f"entry {sequence} of the training {chain}" if chain else f"entry {sequence}"
        super().__init__(one_line(f"{place}: {problem}"))
        self.sequence = sequence
        self.problem = problem
        self.chain = chain


@dataclass(frozen=True)
class AuditHead:
    """The last entry of a chain, at present or at an earlier time.

    Attributes:
        sequence: Its sequence.
        hash: Its hash.
        chain: The chain: id of a training, or empty for the server's.
    """

    sequence: int
    hash: str
    chain: str = SERVER

    @classmethod
    def parse(cls, text: str, chain: str = SERVER) -> AuditHead:
        """Parses SEQUENCE:HASH, the form that `str` returns.

        Raises:
            ValueError: The text does not have that form.
        """
        sequence, _, digits = text.strip().lower().partition(":")
        if not sequence.isdecimal() or len(digits) != len(START) or set(digits) - set("0123456789abcdef"):
            raise ValueError(f"{text!r} is not SEQUENCE:HASH, as `fedround audit verify` prints it")
        return cls(int(sequence), digits, chain)

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash}"


@dataclass(frozen=True)
class AuditEntry:
    """One entry of the audit log; fields that do not apply are empty. The order of the fields is that of the hash.

    Attributes:
        sequence: Position in its chain: 1, 2, 3, without gaps.
        time_us: Time of the entry, in microseconds since 1970 UTC.
        user_id: The user who did it; empty for the server itself.
        action: What was done.
        training_id: The training that it concerns.
        model_id: The model that it concerns.
        subject: What it concerns within the training or model, for example the number of a round.
        facts: Further fields, as canonical JSON.
        previous_hash: Hash of the previous entry.
        hash: SHA-256 of the fields before it.
        chain: The chain that it is in: id of a training, or empty for the server's.
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
    chain: str = SERVER

    @classmethod
    def from_message(cls, message: audit_pb2.AuditEntry) -> AuditEntry:
        """Returns the entry of a message."""
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
            chain=message.chain,
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AuditEntry:
        """Returns the entry of a line of an exported log; those of earlier versions have no chain.

        Raises:
            ValueError: A field is missing, unknown, or of another type.
        """
        fields = cls.__dataclass_fields__
        data = {"chain": SERVER, **data}
        if data.keys() != fields.keys():
            raise ValueError(f"an entry has the fields {', '.join(fields)}")
        if any(type(data[name]).__name__ != field.type for name, field in fields.items()):
            raise ValueError("sequence and time_us are integers, everything else is text")
        return cls(**data)

    def digest(self) -> str:
        """Returns the hash that it should have: SHA-256 of DOMAIN and the fields before `hash`, as netstrings."""
        texts = [str(value).encode() for value in (DOMAIN, *astuple(self)[:-2])]
        return hashlib.sha256(b"".join(b"%d:%s," % (len(text), text) for text in texts)).hexdigest()
