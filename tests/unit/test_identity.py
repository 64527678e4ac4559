"""The caller that credentials stand for."""

from datetime import UTC, datetime, timedelta

import pytest

from fedround_server.domain.errors import (
    CertificateAmbiguous,
    CertificateMismatch,
    FedroundError,
    TokenExpired,
    TokenInvalid,
    TokenMissing,
)
from fedround_server.domain.identity import Credentials, Identity, caller_of
from fedround_server.domain.token import Token
from fedround_server.domain.user import Role, User

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ANN, BOB = (User(name, name, Role.CLIENT, NOW) for name in ("ann", "bob"))
UNLIMITED = Token("a" * 64, NOW)
VALID = Token("a" * 64, NOW, NOW + timedelta(microseconds=1))
EXPIRED = Token("a" * 64, NOW, NOW)
NO_TOKEN, WITH_TOKEN = Credentials(None), Credentials("a" * 64)


@pytest.mark.parametrize(
    ("credentials", "known"),
    [
        (WITH_TOKEN, Identity(ANN, UNLIMITED)),
        (WITH_TOKEN, Identity(ANN, VALID)),
        (WITH_TOKEN, Identity(ANN, VALID, (ANN,))),
        (NO_TOKEN, Identity(certified=(ANN,))),
    ],
)
def test_a_known_caller(credentials: Credentials, known: Identity) -> None:
    assert caller_of(credentials, known, NOW) == ANN


@pytest.mark.parametrize(
    ("credentials", "known", "error"),
    [
        (NO_TOKEN, Identity(), TokenMissing),
        (WITH_TOKEN, Identity(), TokenInvalid),
        # A certificate does not make up for a wrong token.
        (WITH_TOKEN, Identity(certified=(ANN,)), TokenInvalid),
        (WITH_TOKEN, Identity(ANN, EXPIRED), TokenExpired),
        (WITH_TOKEN, Identity(ANN, EXPIRED, (ANN,)), TokenExpired),
        (WITH_TOKEN, Identity(ANN, VALID, (BOB,)), CertificateMismatch),
        # Nor does a token make up for an ambiguous certificate.
        (WITH_TOKEN, Identity(ANN, VALID, (ANN, BOB)), CertificateAmbiguous),
        (NO_TOKEN, Identity(certified=(ANN, BOB)), CertificateAmbiguous),
    ],
)
def test_an_unknown_caller(credentials: Credentials, known: Identity, error: type[FedroundError]) -> None:
    with pytest.raises(error):
        caller_of(credentials, known, NOW)
