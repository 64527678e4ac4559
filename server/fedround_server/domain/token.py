"""Tokens, by which callers are authenticated, and what is stored of them."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime

TOKEN_PREFIX = "fr_"  # noqa: S105 - lets secret scanners find leaked tokens
ID_DIGITS = 16
# Also matches a truncated token, since the missing rest of it could be guessed.
TOKEN = re.compile(rf"{TOKEN_PREFIX}[A-Za-z0-9_-]{{20,}}")
LIVE_TOKENS = 2
"""How many tokens of a user are valid at once, so that one can replace the other without a gap."""


@dataclass(frozen=True, slots=True)
class Token:
    """A stored token: its hash, never the token itself."""

    token_hash: str
    create_time: datetime
    expire_time: datetime | None = None

    @property
    def token_id(self) -> str:
        """The public identifier of the token: the first digits of its hash."""
        return self.token_hash[:ID_DIGITS]

    def is_live(self, now: datetime) -> bool:
        """Returns whether the token has not expired."""
        return self.expire_time is None or now < self.expire_time


def new_token() -> str:
    """Returns a new token of 256 random bits; with so much entropy a plain SHA-256 is a sufficient hash."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """Returns the hash under which a token is stored: its SHA-256 in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def redact(text: str) -> str:
    """Returns a text with all tokens replaced by `fr_...`: a caller may have put one into any field."""
    return TOKEN.sub(f"{TOKEN_PREFIX}...", text)
