"""Whose call it is: decided by the token that it carries, and by the certificate of its connection."""

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
    """What a call comes with.

    Attributes:
        token_hash: Of its token, if it carries one.
        names: Of the client certificate, which the connection has verified.
    """

    token_hash: str | None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Identity:
    """What is known about credentials.

    Attributes:
        owner: The user that the token belongs to.
        token: The token.
        certified: The users that the certificate names.
    """

    owner: User | None = None
    token: Token | None = None
    certified: tuple[User, ...] = ()


def caller_of(credentials: Credentials, known: Identity, now: datetime) -> User:
    """Decides whose call it is.

    Raises:
        CertificateAmbiguous: The certificate names several users.
        CertificateMismatch: The certificate names somebody else than the token.
        TokenMissing: There is no token, and the certificate names nobody.
        TokenInvalid: The token is nobody's.
        TokenExpired: The token was good once. Only who has the token learns of it.
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
