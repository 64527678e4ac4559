"""Whose call it is."""

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
LASTING = Token("a" * 64, NOW)
GOOD = Token("a" * 64, NOW, NOW + timedelta(microseconds=1))
OVER = Token("a" * 64, NOW, NOW)
NOTHING, SHOWN = Credentials(None), Credentials("a" * 64)


@pytest.mark.parametrize(
    ("credentials", "known"),
    [
        (SHOWN, Identity(ANN, LASTING)),
        (SHOWN, Identity(ANN, GOOD)),
        (SHOWN, Identity(ANN, GOOD, (ANN,))),
        (NOTHING, Identity(certified=(ANN,))),
    ],
)
def test_who_is_known(credentials: Credentials, known: Identity) -> None:
    assert caller_of(credentials, known, NOW) == ANN


@pytest.mark.parametrize(
    ("credentials", "known", "refusal"),
    [
        (NOTHING, Identity(), TokenMissing),
        (SHOWN, Identity(), TokenInvalid),
        # A certificate does not mend a wrong token.
        (SHOWN, Identity(certified=(ANN,)), TokenInvalid),
        (SHOWN, Identity(ANN, OVER), TokenExpired),
        (SHOWN, Identity(ANN, OVER, (ANN,)), TokenExpired),
        (SHOWN, Identity(ANN, GOOD, (BOB,)), CertificateMismatch),
        # Nor does a token mend a certificate.
        (SHOWN, Identity(ANN, GOOD, (ANN, BOB)), CertificateAmbiguous),
        (NOTHING, Identity(certified=(ANN, BOB)), CertificateAmbiguous),
    ],
)
def test_who_is_not(credentials: Credentials, known: Identity, refusal: type[FedroundError]) -> None:
    with pytest.raises(refusal):
        caller_of(credentials, known, NOW)
