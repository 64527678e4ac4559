"""The TLS files: whether they can be used, and when they expire."""

import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedround_server.config import Settings
from fedround_server.doctor.finding import Finding

SOON_DAYS = 30
EXPIRED, NOT_YET_VALID = 10, 9
"""X509_V_ERR codes of OpenSSL."""
DAY = 86_400


def check_tls(settings: Settings) -> Iterator[Finding]:
    """Checks certificate, key and client CA as a handshake would; nothing if there is no TLS."""
    cert, key, client_ca = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    if cert is None or key is None:
        yield Finding("TLS", "ok", "none: plaintext")
        return
    try:
        yield _expiry("TLS certificate", cert, _own_certificate(cert, key)["notAfter"])
    except ssl.SSLCertVerificationError as error:
        problem = {EXPIRED: "has expired: renew it", NOT_YET_VALID: "is not valid yet: check this machine's clock"}
        found = problem.get(error.verify_code, f"cannot be used: {error.verify_message}")
        yield Finding("TLS certificate", "fail", f"{cert} {found}")
    except OSError as error:
        yield Finding("TLS certificate", "fail", f"{cert} and {key} cannot be used: {_reason(error)}")
    if client_ca is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_verify_locations(client_ca)
        ends = [one["notAfter"] for one in context.get_ca_certs()]
    except OSError as error:
        yield Finding("TLS client CA", "fail", f"{client_ca} cannot be used: {_reason(error)}")
        return
    if not ends:
        yield Finding("TLS client CA", "fail", f"{client_ca} has no certificate of an authority")
    else:
        yield _expiry("TLS client CA", client_ca, str(min(ends, key=lambda end: ssl.cert_time_to_seconds(str(end)))))


def _own_certificate(cert: Path, key: Path) -> dict[str, Any]:
    """Returns a certificate as a peer that trusts it sees it, after a handshake in memory.

    Raises:
        OSError: A file cannot be read, or they do not fit each other; or the certificate is not valid now.
    """
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(cert, key, password="")
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_side.check_hostname = False
    client_side.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client_side.load_verify_locations(cert)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    client = client_side.wrap_bio(to_client, to_server)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return client.getpeercert() or {}


def _expiry(check: str, path: Path, end: str) -> Finding:
    days = int((ssl.cert_time_to_seconds(end) - time.time()) // DAY)
    if days < 0:
        return Finding(check, "fail", f"{path} has expired ({end}): renew it")
    when = f"{path} expires in {days} days ({end})"
    return Finding(check, "ok", when) if days >= SOON_DAYS else Finding(check, "note", f"{when}: renew it")


def _reason(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or str(error)
