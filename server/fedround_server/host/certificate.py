"""When a certificate expires. Python's ssl module shows that of a peer alone, and only after a handshake."""

import re
import ssl
from datetime import UTC, datetime

VERSION, UTC_TIME = 0xA0, 0x17
VALIDITY = 4
"""Where the validity stands in a TBSCertificate without its optional version (RFC 5280, section 4.1)."""


def first_certificate(pem: str) -> bytes:
    """Returns the first certificate of a PEM file, in DER.

    Raises:
        ValueError: There is none.
    """
    found = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", pem, re.DOTALL)
    if found is None:
        raise ValueError("the file has no certificate")
    return ssl.PEM_cert_to_DER_cert(found[0])


def not_after(certificate: bytes) -> datetime:
    """Returns when a certificate in DER expires.

    Raises:
        ValueError: It is no certificate.
    """
    try:
        (_, whole), *_ = _elements(certificate)
        (_, signed), *_ = _elements(whole)
        fields = _elements(signed)
        validity = fields[VALIDITY if fields[0][0] == VERSION else VALIDITY - 1]
        _, (tag, text) = _elements(validity[1])
        # Two digits of a year stand for 1950 to 2049 there, and for 1969 to 2068 in Python.
        years = b"" if tag != UTC_TIME else b"20" if text[:2] < b"50" else b"19"
        return datetime.strptime((years + text).decode(), "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    except (IndexError, ValueError) as error:
        raise ValueError("the certificate cannot be read") from error


def _elements(content: bytes) -> list[tuple[int, bytes]]:
    """Returns the tags and contents of the elements that follow each other in DER."""
    found = []
    position = 0
    while position < len(content):
        tag, length = content[position], content[position + 1]
        position += 2
        if length & 0x80:
            count = length & 0x7F
            length = int.from_bytes(content[position : position + count], "big")
            position += count
        found.append((tag, content[position : position + length]))
        position += length
    return found
