"""Users, their roles and their tokens."""

import enum
import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime

TOKEN_PREFIX = "fr_"  # noqa: S105 - lets secret scanners find leaked tokens


class Role(enum.Enum):
    """What a user may do."""

    ADMIN = "ADMIN"
    ACTOR = "ACTOR"
    CLIENT = "CLIENT"


@dataclass(frozen=True, slots=True)
class User:
    """Somebody with a token."""

    user_id: str
    name: str
    role: Role
    create_time: datetime


def new_token() -> str:
    """Makes a token of 256 random bits: guessing is hopeless, so a plain SHA-256 is enough to keep it."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """Returns what the store keeps of a token."""
    return hashlib.sha256(token.encode()).hexdigest()
