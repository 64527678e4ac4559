"""Tokens: what a user shows, and what the server keeps of it."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime

TOKEN_PREFIX = "fr_"  # noqa: S105 - lets secret scanners find leaked tokens
ID_DIGITS = 16
# Also a token that was cut: what is left out of so many characters is guessed by nobody.
TOKEN = re.compile(rf"{TOKEN_PREFIX}[A-Za-z0-9_-]{{20,}}")
LIVE_TOKENS = 2
"""How many tokens of a user are good at once, so that one can take the place of the other."""


@dataclass(frozen=True, slots=True)
class Token:
    """What the server keeps of a token: its hash, never itself."""

    token_hash: str
    create_time: datetime
    expire_time: datetime | None = None

    @property
    def token_id(self) -> str:
        """What people call it by."""
        return self.token_hash[:ID_DIGITS]

    def is_live(self, now: datetime) -> bool:
        """Tells whether it has not expired."""
        return self.expire_time is None or now < self.expire_time


def new_token() -> str:
    """Makes a token of 256 random bits: guessing is hopeless, so a plain SHA-256 is enough to keep it."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """Returns what the store keeps of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def redact(text: str) -> str:
    """Takes tokens out of a text: somebody may have put one where it does not belong."""
    return TOKEN.sub(f"{TOKEN_PREFIX}...", text)
