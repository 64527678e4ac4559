"""When certificates expire, as the server reads it from their files."""

from datetime import UTC, datetime

import pytest
import trustme

from fedround_server.host.certificate import first_certificate, not_after


@pytest.mark.parametrize(
    "end",
    [
        datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC),
        datetime(2049, 12, 31, tzinfo=UTC),
        datetime(2100, 1, 1, tzinfo=UTC),
    ],
)
def test_the_end_of_a_certificate(end: datetime) -> None:
    issued = trustme.CA().issue_cert("a.example", not_before=datetime(1990, 1, 1, tzinfo=UTC), not_after=end)
    chain = "comment ü\n" + "".join(pem.bytes().decode() for pem in issued.cert_chain_pems)
    assert not_after(first_certificate(chain)) == end


@pytest.mark.parametrize("content", [b"", b"\x30\x03\x02\x01\x01", b"\x30\x82", b"text"])
def test_what_is_no_certificate_is_an_error(content: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        not_after(content)


def test_a_file_without_a_certificate_is_an_error() -> None:
    with pytest.raises(ValueError, match="no certificate"):
        first_certificate("-----BEGIN PRIVATE KEY-----")
