"""Determines the caller from the token of the call and the client certificate of its connection."""

from dataclasses import dataclass
from datetime import datetime

from fedround_server.domain.errors import (
    CertificateAmbiguous,
    CertificateMismatch,
    TokenExpired,
    TokenInvalid,
    TokenMissing,
)
from fedround_server.domain.token import Token
from fedround_server.domain.user import User


@dataclass(frozen=True, slots=True)
class Credentials:
    """The credentials of a call: the hash of its token, if any, and the names in its verified client certificate."""

    token_hash: str | None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Identity:
    """The users that credentials belong to: the owner of the token, and those that the certificate names."""

    owner: User | None = None
    token: Token | None = None
    certified: tuple[User, ...] = ()


def caller_of(credentials: Credentials, known: Identity, now: datetime) -> User:
    """Returns the caller.

    Raises:
        CertificateAmbiguous: The certificate names several users.
        CertificateMismatch: The certificate names another user than the token.
        TokenMissing: There is no token, and the certificate names no user.
        TokenInvalid: The token belongs to no user.
        TokenExpired: The token has expired. Only its holder can cause this error.
    """
    if len(known.certified) > 1:
        raise CertificateAmbiguous
    if credentials.token_hash is None:
        if not known.certified:
            raise TokenMissing
        return known.certified[0]
    if known.owner is None or known.token is None:
        raise TokenInvalid
    if not known.token.is_live(now):
        raise TokenExpired
    if known.certified and known.certified[0].user_id != known.owner.user_id:
        raise CertificateMismatch
    return known.owner
